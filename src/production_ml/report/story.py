"""The run, read once: what the summary, the charts and the tables are all made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from production_ml.monitoring.recoveries import Attempt, Failure, Recovery, attempts, failures, recoveries
from production_ml.monitoring.run_log import EventRecord, RunLog, Source
from production_ml.report.series import SeriesByAttempt, series_by_metric

LONGEST_NAME = 40
"""Of an event, a level, a signal: what stands in a narrow column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStory:
    """What happened in a run. Times are wall seconds."""

    log: RunLog
    series: Mapping[str, SeriesByAttempt]
    attempts: tuple[Attempt, ...]
    failures: tuple[Failure, ...]
    recoveries: tuple[Recovery, ...]

    @property
    def sources(self) -> list[Source]:
        """Every process that wrote to the log."""
        # By identity first: records share their source, and hashing it a million times takes seconds.
        return list(dict.fromkeys({id(sourced.source): sourced.source for sourced in self.log.records}.values()))

    @property
    def started_at(self) -> float:
        """The first thing known of the run; 0 where nothing was logged."""
        return self.log.records[0].record.wall_seconds if self.log.records else 0.0

    @property
    def ended_at(self) -> float:
        """The last thing known of the run."""
        return self.log.records[-1].record.wall_seconds if self.log.records else 0.0

    def superseded_from(self, attempt: int) -> float:
        """The step from which a later attempt went through this one's steps again; infinity where none did."""
        later = (other.first_step for other in self.attempts if other.number > attempt)
        return min((step for step in later if step is not None), default=math.inf)

    def recovery_from(self, failure: Failure) -> Recovery | None:
        """The restart that followed a failure."""
        return next((recovery for recovery in self.recoveries if recovery.failure.attempt == failure.attempt), None)

    def back_at(self, failure: Failure) -> float:
        """When training went on after a failure; where it has not, the end of what is known."""
        later = (other.first_metrics_at for other in self.attempts if other.number > failure.attempt)
        return next((at for at in later if at is not None), self.ended_at)


def read_story(log: RunLog) -> RunStory:
    """Everything the report needs to know."""
    return RunStory(
        log=log,
        series=series_by_metric(log.metrics()),
        attempts=attempts(log),
        failures=failures(log),
        recoveries=recoveries(log),
    )


def row_name(role: str, rank: int) -> str:
    """How a writer is called: `rank 3` or `launcher`."""
    return f"rank {rank}" if role == "rank" else role


def number_field(event: EventRecord, name: str) -> float | None:
    """A fact that should be a number, None where it is not one."""
    found = event.fields.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def failure_name(failure: Failure) -> str:
    """`SIGKILL`, `exit code 1`, or what can be said."""
    if failure.signal is not None:
        return shortened(failure.signal, LONGEST_NAME)
    return "stopped" if failure.exit_code is None else f"exit code {failure.exit_code}"


def failed_worker(failure: Failure) -> str:
    """`rank 1`, or that nobody saw which."""
    return "unknown rank" if failure.rank is None else f"rank {failure.rank}"


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters of a text that may have any length."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
