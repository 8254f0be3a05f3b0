"""Samples, rows and sections: contenders are measured in turn, round after round, so that all see the same noise."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

OURS = "production_ml"


@dataclass(kw_only=True, slots=True)
class Row:
    """What one contender did.

    Attributes:
        name: The contender.
        samples: One number per round, in `unit`.
        unit: `s`, `ms`, `%`, `x state` and so on.
        ratios: What it is in terms of the floors, by the column's title, as text.
        note: What a reader must know to judge the number.
    """

    name: str
    samples: list[float]
    unit: str = "s"
    ratios: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": self.samples,
            "ratios": self.ratios,
            "note": self.note,
        }


@dataclass(kw_only=True, slots=True)
class Section:
    """One table: what was measured, on which state, with which rows."""

    name: str
    title: str
    note: str
    rows: list[Row]
    state_bytes: int
    tensors: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "state_bytes": self.state_bytes,
            "tensors": self.tensors,
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(kw_only=True, slots=True)
class Contender:
    """One thing to measure.

    Attributes:
        run: What is measured; where it returns a number, that number is the sample instead of its seconds.
        prepare: Called before it and not measured.
        check: Called after it and not measured; raises where the work was not done.
    """

    run: Callable[[], float | None]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(
    contenders: Mapping[str, Contender], *, rounds: int, progress: Progress, title: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """Let all contenders run in turn, `warm_up + rounds` times; the warm-up rounds are not kept.

    Every second round goes backwards, so that none always follows the same neighbour.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    task = progress.add_task(title, total=(warm_up + rounds) * len(contenders))
    for number in range(warm_up + rounds):
        for name in _turn(list(contenders), number):
            progress.update(task, description=f"{title}: {name}")
            sample = _sample(contenders[name])
            if number >= warm_up:
                samples[name].append(sample)
            progress.advance(task)
    progress.remove_task(task)
    return samples


def _turn(names: list[str], number: int) -> Iterable[str]:
    return reversed(names) if number % 2 else names


def _sample(contender: Contender) -> float:
    contender.prepare()
    gc.collect()  # what the one before left behind is not this one's cost
    begin = time.perf_counter()
    answer = contender.run()
    elapsed = time.perf_counter() - begin
    contender.check()
    return elapsed if answer is None else answer


def share(floor: Sequence[float], samples: Sequence[float]) -> str:
    """The speed of `samples` as a share of the floor's speed: 100% is as fast."""
    return f"{100 * statistics.median(floor) / statistics.median(samples):.0f}%"


def multiple(samples: Sequence[float], floor: Sequence[float]) -> str:
    """The duration of `samples` as a multiple of the floor's: 1x is as fast."""
    return f"{statistics.median(samples) / statistics.median(floor):.2f}x"
