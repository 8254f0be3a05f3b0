"""The interval that loses the least time, between saves that cost something and failures that undo work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory


def save_interval(save_cost: timedelta, mean_time_between_failures: timedelta) -> timedelta:
    """The checkpoint interval that loses the least time, sqrt(2 · cost · MTBF).

    Young's first-order optimum (CACM 17(9), 1974); Daly's correction (FGCS 22(3), 2006) matters only when the cost
    passes half the MTBF, which is refused here because no interval helps then.

    Raises:
        ConfigError: `save_cost` is negative, or not shorter than half of `mean_time_between_failures`.
    """
    if save_cost < timedelta(0):
        raise ConfigError("save_cost", save_cost, "must not be negative")
    if save_cost * 2 >= mean_time_between_failures:
        problem = f"must be shorter than half of the mean time between failures ({mean_time_between_failures})"
        raise ConfigError("save_cost", save_cost, problem, cure="Make saves cheaper, or look for why the run fails.")
    seconds = math.sqrt(2 * save_cost.total_seconds() * mean_time_between_failures.total_seconds())
    return timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalChoice:
    """An interval, and what it was chosen by."""

    interval: timedelta
    save_cost: timedelta | None
    """None before the first save, when it is not known yet."""
    mean_time_between_failures: timedelta
    history: FailureHistory

    def facts(self) -> dict[str, Any]:
        """For the log."""
        cost = self.save_cost
        return {
            "interval_seconds": self.interval.total_seconds(),
            "save_cost_seconds": None if cost is None else cost.total_seconds(),
            "mean_time_between_failures_seconds": self.mean_time_between_failures.total_seconds(),
            "failures": self.history.failures,
            "observed_seconds": self.history.observed_seconds,
        }

    def __str__(self) -> str:
        cost = "not known yet" if self.save_cost is None else f"{self.save_cost.total_seconds():.3g} s"
        count = self.history.failures
        seen = f"{count} failure{'' if count == 1 else 's'} in {_rounded(self.history.observed_seconds)} so far"
        expected = _rounded(self.mean_time_between_failures.total_seconds())
        every = _rounded(self.interval.total_seconds())
        return f"every {every}: a save costs {cost}, and a failure is expected every {expected} ({seen})"


def _rounded(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
