"""How often this run has failed so far, by its launcher's own account."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from production_ml.core.distributed_env import RUN_DIR_VARIABLE
from production_ml.core.errors import InputFileError
from production_ml.monitoring.recoveries import attempts, failures
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import RunLog
from production_ml.monitoring.run_log.reader import LogFile


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureHistory:
    """What is known of a run's failures."""

    failures: int = 0
    observed_seconds: float = 0.0
    """How long the run has been trained in all; the time between attempts does not count."""


def mean_time_between_failures(history: FailureHistory, prior: timedelta) -> timedelta:
    """What to expect: `prior` at first, and the run's own record the more the longer it is.

    The prior counts as one failure seen in that time, which is the mean of a gamma distribution over failure rates.
    """
    seconds = (prior.total_seconds() + history.observed_seconds) / (1 + history.failures)
    return timedelta(seconds=seconds)


def read_failure_history(run_dir: Path) -> FailureHistory:
    """The failures that the launcher recorded in `run_dir`; none where it holds no run.

    The ranks' own files are not read: they hold every step's metrics, and training waits for this.
    """
    run = RunDirectory(run_dir)
    try:
        identity = run.identity()
    except InputFileError:
        return FailureHistory()
    files = sorted(run.log_directory.glob("launcher.*.runlog"))
    records = [record for path in files for record in LogFile(path).read_new()]
    log = RunLog(run, identity, sorted(records, key=lambda sourced: sourced.record.wall_seconds))
    ended = {failure.attempt: failure.failed_at for failure in failures(log)}
    lasted = [ended[attempt.number] - attempt.started_at for attempt in attempts(log) if attempt.number in ended]
    return FailureHistory(failures=len(ended), observed_seconds=sum(max(0.0, seconds) for seconds in lasted))


def own_failure_history(environ: Mapping[str, str] | None = None) -> FailureHistory:
    """The failures of the run that this process belongs to by its launcher's word; none without a launcher."""
    run_dir = (os.environ if environ is None else environ).get(RUN_DIR_VARIABLE)
    return read_failure_history(Path(run_dir)) if run_dir else FailureHistory()
