"""The elastic launcher: starts the workers of a job, and starts them again when one fails."""

from production_ml.fault_tolerance.launcher.launching import launch

__all__ = ["launch"]
