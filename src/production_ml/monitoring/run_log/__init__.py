"""The run log: what training did, appended as it happens and never lost to a SIGKILL."""

from production_ml.monitoring.run_log.format import EventRecord, MetricsRecord, Record, Source
from production_ml.monitoring.run_log.reader import Damage, RunLog, RunLogFollower, SourcedRecord
from production_ml.monitoring.run_log.writer import RunLogWriter

__all__ = [
    "Damage",
    "EventRecord",
    "MetricsRecord",
    "Record",
    "RunLog",
    "RunLogFollower",
    "RunLogWriter",
    "Source",
    "SourcedRecord",
]
