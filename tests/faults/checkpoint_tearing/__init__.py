"""Trainings that go on while they are saved, and change everything that a save might still be reading.

Run it with `make checkpoint-tearing`, or `PYTHONPATH=tests/faults python -m checkpoint_tearing --help`.
"""
