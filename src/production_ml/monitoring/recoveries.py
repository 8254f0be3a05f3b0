"""What failures cost: for each restart who failed, how long no step was made, and which steps were made twice.

Pure functions over a run log. Every figure is one that was logged; what the log does not say is None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from production_ml.monitoring.run_log import EventRecord, MetricsRecord, RunLog, Source, SourcedRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of the workers, all ranks together. Times are wall seconds."""

    number: int
    started_at: float
    """When the launcher started it; without a launcher's word, when its first rank did."""
    ended_at: float
    """Its last record, of any rank; where there is none, the last that the launcher says of it."""
    first_step: int | None
    """The first step logged; None where it logged no metrics."""
    last_step: int | None
    first_metrics_at: float | None
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A worker that failed, as the launcher saw it; rank, exit code and signal are None where nobody saw."""

    attempt: int
    rank: int | None
    exit_code: int | None
    signal: str | None
    """`SIGKILL` and the like; None where the worker exited by itself."""
    reason: str
    failed_at: float
    """When training stopped: the attempt's last record, or the launcher's word where that came earlier."""
    detected_at: float | None
    """When the launcher noticed; None without a launcher's word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """A restart: what ended the attempt before, and how training came back. Times are wall seconds."""

    attempt: int
    """The attempt that the restart began."""
    failure: Failure
    last_step_before: int | None
    """The last step logged before the restart, by whichever earlier attempt made one; None if none did."""
    first_step_after: int | None
    """The first step that the new attempt logged; None where it logged none (yet)."""
    resumed_from_step: int | None
    """The checkpoint that the new attempt loaded; None where it loaded none."""
    steps_redone: int
    recovered_at: float | None
    """The new attempt's first metrics; None where it logged none (yet)."""

    @property
    def down_seconds(self) -> float | None:
        """From the failure to the first metrics of the new attempt.

        None where there are none (yet), or where they seem to be older: the wall clock was set back in between.
        """
        if self.recovered_at is None or self.recovered_at < self.failure.failed_at:
            return None
        return self.recovered_at - self.failure.failed_at


def attempts(log: RunLog) -> tuple[Attempt, ...]:
    """All attempts that left a trace, in order; one of which only the launcher knows is there too."""
    by_number: dict[int, list[SourcedRecord]] = {}
    for sourced in log.records:
        if sourced.source.role == "rank":
            by_number.setdefault(sourced.source.attempt, []).append(sourced)
    starts, ends = _by_attempt(log, "attempt_started"), _by_attempt(log, "worker_failed")
    numbers = sorted(by_number.keys() | starts.keys() | ends.keys())
    return tuple(_attempt(by_number.get(n, []), n, starts.get(n), ends.get(n)) for n in numbers)


def failures(log: RunLog) -> tuple[Failure, ...]:
    """What ended each attempt that failed, in order: those that a restart followed, and the last one if it did.

    Of several workers that failed in one attempt, the one that the launcher named first counts. A run that is
    continued after it had succeeded did not fail.
    """
    tried = attempts(log)
    seen = _by_attempt(log, "worker_failed")
    found: list[Failure] = []
    for attempt, following in itertools.zip_longest(tried, tried[1:]):
        outcome = _launch_outcome(log, attempt, following)
        if outcome != "succeeded" and (following is not None or attempt.number in seen):
            found.append(_failure(attempt, seen.get(attempt.number), was_interrupted=outcome == "interrupted"))
    return tuple(found)


def recoveries(log: RunLog) -> tuple[Recovery, ...]:
    """One for each restart after a failure, in order; also for a restart that has not made a step yet."""
    tried = attempts(log)
    found = {failure.attempt: failure for failure in failures(log)}
    loaded = list(log.events("checkpoint_loaded"))
    recovered: list[Recovery] = []
    last_step: int | None = None
    for old, new in itertools.pairwise(tried):
        last_step = old.last_step if old.last_step is not None else last_step
        if old.number in found:
            recovered.append(_recovery(found[old.number], new, last_step, _resumed_from(new, loaded)))
    return tuple(recovered)


def _attempt(records: list[SourcedRecord], number: int, start: EventRecord | None, end: EventRecord | None) -> Attempt:
    metrics = [sourced for sourced in records if isinstance(sourced.record, MetricsRecord)]
    times = [sourced.record.wall_seconds for sourced in records]
    metric_times = [sourced.record.wall_seconds for sourced in metrics]
    # Workers that died before they could write leave only the launcher's word.
    times = times or [event.wall_seconds for event in (start, end) if event is not None]
    started_at = start.wall_seconds if start is not None else min(times)
    told_size = _whole_number(start.fields, "world_size") if start is not None else None
    return Attempt(
        number=number,
        started_at=started_at,
        ended_at=max(times),
        first_step=min(_step_of_each_rank(reversed(metrics)), default=None),
        last_step=max(_step_of_each_rank(metrics), default=None),
        first_metrics_at=min(metric_times, default=None),
        world_size=told_size or max((sourced.source.world_size for sourced in records), default=1),
    )


def _launch_outcome(log: RunLog, attempt: Attempt, following: Attempt | None) -> str | None:
    """How the launcher ended with this attempt; None where it went on, or where there is none."""
    until = following.started_at if following is not None else math.inf
    ends = [event for _, event in log.events("launch_finished") if attempt.started_at <= event.wall_seconds <= until]
    return str(ends[-1].fields.get("outcome")) if ends else None


def _step_of_each_rank(metrics: Iterable[SourcedRecord]) -> Iterable[int]:
    """The step that stands last for each rank. By time and not by size: a metric may be logged per epoch."""
    return {sourced.source.rank: sourced.record.step for sourced in metrics if sourced.record.step is not None}.values()


def _failure(attempt: Attempt, seen: EventRecord | None, *, was_interrupted: bool) -> Failure:
    fields: Mapping[str, Any] = seen.fields if seen is not None else {}
    signal = fields.get("signal")
    return Failure(
        attempt=attempt.number,
        rank=_whole_number(fields, "rank"),
        exit_code=_whole_number(fields, "exit_code"),
        signal=str(signal) if signal else None,
        reason=str(fields.get("reason") or ("interrupted" if was_interrupted else "")),
        failed_at=attempt.ended_at if seen is None else min(attempt.ended_at, seen.wall_seconds),
        detected_at=seen.wall_seconds if seen is not None else None,
    )


def _recovery(failure: Failure, new: Attempt, last_step: int | None, resumed_from: int | None) -> Recovery:
    redone = 0
    if last_step is not None and new.first_step is not None:
        redone = max(0, last_step - new.first_step + 1)
    return Recovery(
        attempt=new.number,
        failure=failure,
        last_step_before=last_step,
        first_step_after=new.first_step,
        resumed_from_step=resumed_from,
        steps_redone=redone,
        recovered_at=new.first_metrics_at,
    )


def _resumed_from(new: Attempt, loaded: list[tuple[Source, EventRecord]]) -> int | None:
    """The last load before the first metrics: a script may load a pretrained part before it resumes."""
    until = new.first_metrics_at if new.first_metrics_at is not None else math.inf
    steps = [event.step for source, event in loaded if source.attempt == new.number and event.wall_seconds <= until]
    return steps[-1] if steps else None


def _by_attempt(log: RunLog, name: str) -> dict[int, EventRecord]:
    """The first event of that name about each attempt; the launcher's own attempt stands in where none is named."""
    found: dict[int, EventRecord] = {}
    for source, event in log.events(name):
        number = _whole_number(event.fields, "attempt")
        found.setdefault(source.attempt if number is None else number, event)
    return found


def _whole_number(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
