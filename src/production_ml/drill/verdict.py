"""The verdict on a fault: pure functions over the run log of the run that it hit, and of the one without faults."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from production_ml.monitoring.recoveries import recoveries
from production_ml.monitoring.run_log import RunLog


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How a run went, as its log tells."""

    first_metrics_at: float
    """Wall seconds."""
    last_metrics_at: float
    steps: frozenset[int]
    """The steps whose work counts: what was undone by a later resume is not among them."""
    steps_redone: int

    @property
    def training_seconds(self) -> float:
        """From the first step logged to the last."""
        return self.last_metrics_at - self.first_metrics_at

    @property
    def final_step(self) -> int:
        """The last step."""
        return max(self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What the last checkpoint holds, beside that of the run without faults."""

    are_equal: bool
    """In every bit."""
    are_finite: bool
    step: int
    reference_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a script came through one fault."""

    fault: str
    seed: int
    rank: int
    step: int
    """After which step of which rank it struck."""
    is_survived: bool
    why: str
    """What was wrong; empty where it was survived."""
    detected_by: str | None = None
    """The first event that tells of it; None where none does."""
    detected_seconds: float | None = None
    recovered_seconds: float | None = None
    """From the fault to the first step that was logged by training that had recovered."""
    steps_redone: int | None = None
    steps_lost: int | None = None
    """Steps of the run without faults that nobody's work stands for, told by step numbers."""
    weights_are_equal: bool | None = None
    """In every bit; None where the two cannot be compared."""
    goodput_ratio: float | None = None
    """The time that the run without faults took, as a share of what this one took."""

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON."""
        return asdict(self)


def course(log: RunLog) -> Course | None:
    """How a run went; None where it logged no step."""
    records = [
        (source.attempt, record.step, record.wall_seconds) for source, record in log.metrics() if source.role == "rank"
    ]
    if not records:
        return None
    times = [wall_seconds for _, _, wall_seconds in records]
    return Course(
        first_metrics_at=min(times),
        last_metrics_at=max(times),
        steps=frozenset(_standing_steps([(attempt, step) for attempt, step, _ in records])),
        steps_redone=sum(recovery.steps_redone for recovery in recoveries(log)),
    )


def first_sign(log: RunLog, signs: frozenset[str], *, since: float) -> tuple[str, float] | None:
    """The first event of these names after a moment in wall seconds, and when it was."""
    found = [(event.wall_seconds, event.name) for _, event in log.events() if event.name in signs]
    after = sorted((moment, name) for moment, name in found if moment >= since)
    return (after[0][1], after[0][0]) if after else None


def first_step_after(log: RunLog, *, since: float, struck_attempt: int) -> float | None:
    """When the first step was logged that shows training going on.

    If the workers were started again, that is a step of theirs; else the first one after `since`.
    """
    later = [
        (source.attempt, record.wall_seconds)
        for source, record in log.metrics()
        if source.role == "rank" and record.wall_seconds >= since
    ]
    restarted = [moment for attempt, moment in later if attempt > struck_attempt]
    return min(restarted or [moment for _, moment in later], default=None)


def shortcoming(
    *, exit_code: int | None, of: Course | None, reference: Course, weights: Weights | None, keeps_weights: bool
) -> str:
    """Why a run did not survive; empty where it did."""
    if exit_code is None:
        return "it did not end within the time limit"
    if exit_code != 0:
        return f"the launcher ended with exit code {exit_code}"
    if of is None:
        return "no step was logged"
    if of.final_step != reference.final_step:
        return f"it ended at step {of.final_step}, and without faults at {reference.final_step}"
    if lost := reference.steps - of.steps:
        return f"{len(lost)} steps were lost, the first of them {min(lost)}"
    if weights is not None and not weights.are_finite:
        return "the weights at the end are not finite numbers"
    if weights is not None and weights.step != weights.reference_step:
        return f"its last checkpoint is of step {weights.step}, and without faults of step {weights.reference_step}"
    if weights is not None and keeps_weights and not weights.are_equal:
        return "the weights at the end are not those of the run without faults"
    return ""


def _standing_steps(records: list[tuple[int, int]]) -> set[int]:
    """Of (attempt, step): each attempt undoes what earlier ones did from its first step on."""
    standing: set[int] = set()
    for number in sorted({attempt for attempt, _ in records}):
        own = {step for attempt, step in records if attempt == number}
        standing = {step for step in standing if step < min(own)} | own
    return standing
