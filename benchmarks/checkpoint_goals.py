"""The goals that checkpoints are held to, each beside what was measured, reached or not."""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint_timing import OURS

_Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        section: A pattern for the names of the tables that it is about.
        text: What it says, with the limit and its unit.
        limit: The limit.
        unit: The unit of the limit and of what is measured.
        is_met: Compares what is measured with the limit.
        measured: Finds the number in a table.
    """

    section: str
    text: str
    limit: float
    unit: str
    is_met: Callable[[float, float], bool]
    measured: Callable[[_Table], float]


def _median(table: _Table, name: str) -> float:
    return next(float(row["median"]) for row in table["rows"] if row["name"] == name)


def _samples(table: _Table, name: str) -> list[float]:
    return next(list(row["samples"]) for row in table["rows"] if row["name"] == name)


def _share_of_best(*floors: str) -> Callable[[_Table], float]:
    return lambda table: 100 * min(_median(table, floor) for floor in floors) / _median(table, OURS)


def _overhead(table: _Table) -> float:
    paired = zip(_samples(table, OURS), _samples(table, "no saves"), strict=True)
    return statistics.median(100 * (ours / without - 1) for ours, without in paired)


def _times(floor: str) -> Callable[[_Table], float]:
    return lambda table: _median(table, OURS) / _median(table, floor)


_LEAST, _MOST = operator.ge, operator.le
GOALS = (
    Goal(section="save", text="durable verified save, share of the faster raw write+fsync", limit=95, unit="%",
         is_met=_LEAST, measured=_share_of_best("raw write+fsync, buffered", "raw write+fsync, O_DIRECT")),
    Goal(section="load-warm", text="verified warm load into a warm model, against memcpy on one thread", limit=1.5,
         unit="x", is_met=_MOST, measured=_times("memcpy, 1 thread")),
    Goal(section="load-fresh", text="verified warm load into fresh memory, against memcpy on one thread between warm "
         "buffers", limit=1.5, unit="x", is_met=_MOST, measured=_times("memcpy, 1 thread")),
    Goal(section="load-cold", text="verified cold load, share of the faster raw read", limit=95, unit="%",
         is_met=_LEAST, measured=_share_of_best("raw read, buffered", "raw read, O_DIRECT")),
    Goal(section="stall", text="stall per asynchronous save, against memcpy on one thread", limit=0.2, unit="x",
         is_met=_MOST, measured=_times("memcpy, 1 thread")),
    Goal(section="overhead-cpu-1", text="step-time overhead where training leaves a core free", limit=1, unit="%",
         is_met=_MOST, measured=_overhead),
    Goal(section="memory", text="peak extra memory, against the state", limit=1, unit="x", is_met=_MOST,
         measured=lambda table: _median(table, OURS)),
    Goal(section=r"planning-\d+", text="planning per save after the first, per 1,000 tensors", limit=5, unit=" ms",
         is_met=_MOST, measured=lambda table: 1000 * _median(table, OURS) / table["tensors"]),
)  # fmt: skip


def against_goals(tables: list[_Table]) -> Iterator[tuple[str, str, str, bool]]:
    """For each goal and table: what the goal says with the state, the limit, what was measured, and whether it is met.

    What is measured is rounded as it is shown before it is compared.
    """
    for goal in GOALS:
        for table in tables:
            if re.fullmatch(goal.section, table["name"]):
                measured = round(goal.measured(table), 2 if goal.unit == "x" else 1)
                bound = "at least" if goal.is_met is _LEAST else "at most"
                state = f"{table['state_bytes'] / (1 << 20):,.0f} MiB, {table['tensors']:,} tensors"
                limit = f"{bound} {goal.limit:g}{goal.unit}"
                yield f"{goal.text} ({state})", limit, f"{measured:g}{goal.unit}", goal.is_met(measured, goal.limit)
