"""The exporter: one process per run and node that reads the run log and feeds the sinks, outside of training.

`start.py` is the monitor's side and costs training nothing; the other files run in the exporter's own process.
"""
