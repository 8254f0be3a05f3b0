"""Hangs, seen from within the worker: its pulse, its answers to the launcher, and a watch of its own under torchrun."""

from production_ml.fault_tolerance.recovery.hang.limits import HangLimits
from production_ml.fault_tolerance.recovery.hang.watch import HangWatch, paused

__all__ = ["HangLimits", "HangWatch", "paused"]
