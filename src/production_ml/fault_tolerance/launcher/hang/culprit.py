"""Finds the rank that did not arrive: a pure function over what all ranks say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from production_ml.fault_tolerance.recovery.hang.stacks import Activity

_TOGETHER: Final = 0.5
"""Ranks that are silent for at least this part of the longest silence hang together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """What is known of one rank that may hang, or wait for one that does."""

    rank: int
    steps: int
    silent_seconds: float
    activity: Activity
    place: str = ""
    """file:line of the user's code, or what the kernel knows of a process that does not answer."""
    state: str = "sleeping"
    """As the kernel has it: running, sleeping, stopped, waits for a device, ended."""
    is_busy: bool = False
    """Its CPU time grew while it was watched."""
    is_moving: bool = False
    """It made a step, or was at another line at a second look."""
    has_stepped: bool = False
    collective: int | None = None
    """The number of the last collective that it has entered, from torch's flight recorder."""
    operation: str | None = None
    """That collective's name."""
    data_workers: tuple[str, ...] = ()
    """Those of its DataLoader's processes that do not live as they should, in words."""

    def as_json(self) -> dict[str, Any]:
        """For the other nodes' launchers."""
        return asdict(self)

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> RankReport:
        """The way back."""
        return cls(
            **{**facts, "activity": Activity(facts["activity"]), "data_workers": tuple(facts.get("data_workers", ()))}
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is to blame, and whether there is still hope."""

    culprits: tuple[RankReport, ...]
    """Empty where all ranks wait in the same collective: then it is the network's fault."""
    is_alive: bool
    """Slow rather than dead: something still moves."""
    is_pause: bool
    """It does what may take long: it evaluates, saves or compiles; or nobody waits for it."""


def _unmoved(reports: Sequence[RankReport]) -> list[RankReport]:
    """Without the ranks that go on, and without those that are done where nobody waits for them."""
    somebody_waits = any(_waits(report) for report in reports)
    here = [report for report in reports if report.state != "ended" or somebody_waits]
    longest = max((report.silent_seconds for report in here if report.state != "ended"), default=0.0)
    return [
        report
        for report in here
        if report.state == "ended" or (not report.has_stepped and report.silent_seconds >= longest * _TOGETHER)
    ]


def find_culprits(reports: Sequence[RankReport]) -> Verdict:
    """Ranks that wait in a collective are victims; the one that does not is the culprit."""
    culprits = _culprits(reports)
    watched = culprits or tuple(reports)
    has_stepped = any(report.has_stepped for report in reports)
    is_alive = has_stepped or any(report.is_busy or report.is_moving for report in watched)
    nobody_waits = not (any(_waits(report) for report in reports) or _has_late_ranks(reports))
    # A rank asleep in a save may be waiting for a slow disk; a stopped one does not save.
    is_pause = any(report.activity is Activity.PAUSE and report.state != "stopped" for report in watched)
    return Verdict(culprits, is_alive=is_alive, is_pause=is_pause or (nobody_waits and is_alive))


def describe(report: RankReport) -> str:
    """What a rank does, in words: `is at train.py:12 in forward`."""
    if report.state == "ended":
        return "has ended"
    if report.state == "stopped":
        return f"is stopped (SIGSTOP){f', {report.place}' if report.place else ''}"
    if report.activity is Activity.UNKNOWN:
        return f"does not answer{f' ({report.place})' if report.place else ''}"
    where = f" at {report.place}" if report.place else ""
    workers = f"; {'; '.join(report.data_workers)}" if report.data_workers else ""
    return f"{report.activity}{where}{workers}"


def _waits(report: RankReport) -> bool:
    return report.state not in ("ended", "stopped") and report.activity in (Activity.COLLECTIVE, Activity.BACKWARD)


def _suspicion(report: RankReport) -> int:
    """The more, the likelier it is this rank that the others wait for."""
    if report.state in ("ended", "stopped"):
        return 5
    return {
        Activity.UNKNOWN: 4,
        Activity.DATA: 3,
        Activity.WORK: 2,
        Activity.PAUSE: 2,
        Activity.BACKWARD: 0,
        Activity.COLLECTIVE: 0,
    }[report.activity]


def _culprits(all_reports: Sequence[RankReport]) -> tuple[RankReport, ...]:
    reports = _unmoved(all_reports)
    most = max((_suspicion(report) for report in reports), default=0)
    if most > 0:
        suspects = [report for report in reports if _suspicion(report) == most]
        return tuple(_least(suspects) if most < 5 and _know_collectives(suspects) else suspects)
    if _know_collectives(reports):
        late = _least(reports)
        if len(late) < len(reports):
            return tuple(late)
        if odd := _odd_ones(reports, [report.operation for report in reports]):
            return odd
    return _odd_ones(reports, [report.place for report in reports])


def _has_late_ranks(reports: Sequence[RankReport]) -> bool:
    """On a GPU a rank waits for a collective in whichever call needs its result; only the recorder tells."""
    return len({report.collective for report in reports if report.collective is not None}) > 1


def _know_collectives(reports: Sequence[RankReport]) -> bool:
    return all(report.collective is not None for report in reports)


def _least(reports: Sequence[RankReport]) -> list[RankReport]:
    """Those that have entered the fewest collectives."""
    least = min(report.collective or 0 for report in reports)
    return [report for report in reports if (report.collective or 0) == least]


def _odd_ones(reports: Sequence[RankReport], doings: Sequence[str | None]) -> tuple[RankReport, ...]:
    """Those that wait elsewhere than most; of two halves, the one that is ahead, since it has skipped something."""
    counts = Counter(doings)
    if len(counts) < 2:
        return ()
    (_, most), (_, next_most) = counts.most_common(2)
    if most > next_most:
        return tuple(report for report, doing in zip(reports, doings, strict=True) if counts[doing] < most)
    ahead = max(report.steps for report in reports)
    odd = tuple(report for report in reports if report.steps == ahead)
    return odd if len(odd) < len(reports) else ()
