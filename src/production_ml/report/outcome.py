"""How the run ended, as its log says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from production_ml.monitoring.run_log import EventRecord, RunLog, Source
from production_ml.monitoring.run_watch import CLOSED_EVENT


class Outcome(StrEnum):
    """The words of the report."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    CUT_SHORT = "cut short"
    """The log says of no end, and the run's processes are gone."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome and how it is known."""

    outcome: Outcome
    because: str


_LAUNCHER_OUTCOMES = {
    "succeeded": Outcome.FINISHED,
    "failed": Outcome.FAILED,
    "interrupted": Outcome.INTERRUPTED,
}


def ending(log: RunLog, *, owners_are_gone: bool = False) -> Ending:
    """The launcher's word goes first, then what the ranks of the newest attempt wrote last.

    Args:
        log: The run.
        owners_are_gone: Whether every process that the run lived in is known to have ended.
    """
    if not log.records:
        return Ending(Outcome.CUT_SHORT if owners_are_gone else Outcome.RUNNING, "nothing was logged yet")
    return _as_launched(log) or _as_ranks_tell(log) or _open_end(owners_are_gone=owners_are_gone)


def _as_launched(log: RunLog) -> Ending | None:
    finished: EventRecord | None = None
    for _, event in log.events():
        if event.name == "launch_finished":
            finished = event
        elif event.name == "attempt_started":
            finished = None  # launched once more into the same directory
    if finished is None:
        return None
    outcome = _LAUNCHER_OUTCOMES.get(str(finished.fields.get("outcome")), Outcome.FAILED)
    return Ending(outcome, f"so says the launcher, with exit code {finished.fields.get('exit_code')}")


def _as_ranks_tell(log: RunLog) -> Ending | None:
    newest = max((sourced.source.attempt for sourced in log.records if sourced.source.role == "rank"), default=0)
    writers: set[int] = set()
    closed: set[int] = set()
    for sourced in log.records:
        if not _is_rank_of(sourced.source, newest):
            continue
        writers.add(sourced.source.rank)
        if isinstance(sourced.record, EventRecord):
            if sourced.record.name == "exception":
                return Ending(Outcome.FAILED, f"rank {sourced.source.rank}: {sourced.record.message}")
            if sourced.record.name == CLOSED_EVENT:
                closed.add(sourced.source.rank)
    if writers and writers == closed:
        return Ending(Outcome.FINISHED, "every rank closed its monitor or came to the end of its script")
    return None


def _open_end(*, owners_are_gone: bool) -> Ending:
    if owners_are_gone:
        return Ending(Outcome.CUT_SHORT, "the log has no end, and the run's processes are gone")
    return Ending(Outcome.RUNNING, "the log has no end yet")


def _is_rank_of(source: Source, attempt: int) -> bool:
    return source.role == "rank" and source.attempt == attempt
