"""The launcher's watch over its workers' pulses: finds the rank that hangs, says what it was doing, and ends it."""

from production_ml.fault_tolerance.launcher.hang.attempts import HangWatches

__all__ = ["HangWatches"]
