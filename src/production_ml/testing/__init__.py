"""Fakes and synthetic data for tests, ours and yours."""
