"""The metrics as arrays: per metric and attempt, the mean, lowest and highest value over the ranks at each step."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from production_ml.monitoring.run_log import MetricsRecord, Source
from production_ml.report.downsampling import Floats, Indices

SeriesByAttempt = dict[int, "Series"]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One metric in one attempt; all arrays are [points], one point per step, steps ascending.

    Where a rank's value was NaN or infinite, mean, lowest and highest are NaN: a sick rank shows.
    """

    steps: Indices
    wall_seconds: Floats
    """When the first rank logged the step."""
    mean: Floats
    lowest: Floats
    highest: Floats
    ranks: int
    """The most values that a step has: more than 1 where several ranks log the metric."""
    not_finite: int
    """How many of the logged values were NaN or infinite."""


def series_by_metric(metrics: Iterable[tuple[Source, MetricsRecord]]) -> dict[str, SeriesByAttempt]:
    """Every metric of the run, in the order in which they were first logged."""
    columns: dict[tuple[str, int], _Columns] = {}
    for source, record in metrics:
        for name, value in record.values.items():
            key = (name, source.attempt)
            found = columns.get(key)
            if found is None:
                found = columns[key] = _Columns()
            found.append(record.step, record.wall_seconds, value)
    gathered: dict[str, SeriesByAttempt] = {}
    for (name, attempt), found in columns.items():
        gathered.setdefault(name, {})[attempt] = found.over_ranks()
    return gathered


class _Columns:
    """Compact arrays to append to: a run may have logged millions of values."""

    __slots__ = ("_steps", "_values", "_wall_seconds")

    def __init__(self) -> None:
        self._steps = array("q")
        self._wall_seconds = array("d")
        self._values = array("d")

    def append(self, step: int, wall_seconds: float, value: float) -> None:
        self._steps.append(step)
        self._wall_seconds.append(wall_seconds)
        self._values.append(value)

    def over_ranks(self) -> Series:
        order = np.argsort(np.asarray(self._steps), kind="stable")
        steps = np.asarray(self._steps, dtype=np.int64)[order]
        values = np.asarray(self._values, dtype=np.float64)[order]
        finite = np.isfinite(values)
        known: npt.NDArray[np.float64] = np.where(finite, values, np.nan)
        first_of_step = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
        counts = np.diff(first_of_step, append=len(steps))
        return Series(
            steps=steps[first_of_step],
            wall_seconds=np.minimum.reduceat(np.asarray(self._wall_seconds)[order], first_of_step),
            mean=np.add.reduceat(known, first_of_step) / counts,
            lowest=np.minimum.reduceat(known, first_of_step),
            highest=np.maximum.reduceat(known, first_of_step),
            ranks=int(counts.max()),
            not_finite=int(np.count_nonzero(~finite)),
        )
