"""Recoveries inside the training process, each usable alone in a loop of the user's own."""
