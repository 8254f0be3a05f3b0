"""Real faults against checkpoints, ours and others': each is caused, then a fresh process has to find the truth.

Run it with `make checkpoint-faults`, or `PYTHONPATH=tests/faults python -m checkpoint_harness --help`.
"""
