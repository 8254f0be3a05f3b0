"""Knowing what the job does: the run log, and everything that is a view of it."""

from production_ml.monitoring.run_log import RunLog
from production_ml.monitoring.training_monitor import TrainingMonitor

__all__ = ["RunLog", "TrainingMonitor"]
