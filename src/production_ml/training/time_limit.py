"""Ends training in time, on all ranks at the same step: after a duration, or before SLURM ends the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ConfigError

_DUE: Final = "time_limit/due"
_SLURM_END: Final = "SLURM_JOB_END_TIME"


class TimeLimit:
    """Limits the time that all attempts of a run train together, as far as their saved states tell.

    What an attempt did after its last save is not counted, nor is the time between attempts. SLURM's end of the job
    (`SLURM_JOB_END_TIME`, seconds since the epoch) limits each attempt besides. `values()` summed over ranks gives
    `is_due` the same decision on each: the first rank whose time is up stops all.

    Args:
        max_time: None if only SLURM limits.
        margin: How long before SLURM's end to stop, so that there is time to save.

    Raises:
        ConfigError: A duration that cannot work, or an unreadable `SLURM_JOB_END_TIME`.
    """

    def __init__(
        self,
        max_time: timedelta | None,
        *,
        margin: timedelta = timedelta(minutes=2),
        clock: Clock = SYSTEM_CLOCK,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if max_time is not None and max_time <= timedelta(0):
            raise ConfigError("max_time", max_time, "must be longer than no time")
        if margin < timedelta(0):
            raise ConfigError("margin", margin, "must not be negative")
        self._max_seconds = None if max_time is None else max_time.total_seconds()
        self._clock = clock
        self._started_seconds = clock.monotonic_seconds()
        self._before_seconds = 0.0
        end = (os.environ if environ is None else environ).get(_SLURM_END)
        self._end_seconds = None if end is None else _parse(end) - margin.total_seconds()

    def values(self) -> dict[str, float]:
        """What this rank adds to the step's sum over ranks."""
        is_spent = self._max_seconds is not None and self._spent_seconds() >= self._max_seconds
        is_ending = self._end_seconds is not None and self._clock.wall_seconds() >= self._end_seconds
        return {_DUE: float(is_spent or is_ending)}

    def is_due(self, sums: Mapping[str, float]) -> bool:
        """Whether training ends now."""
        return sums[_DUE] > 0

    def state_dict(self) -> dict[str, Any]:
        """The time spent so far, in seconds."""
        return {"spent_seconds": self._spent_seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the time that earlier attempts spent.

        Raises:
            ConfigError: The saved time is negative.
        """
        if not state["spent_seconds"] >= 0:
            raise ConfigError("spent_seconds", state["spent_seconds"], "must be at least 0")
        self._before_seconds = state["spent_seconds"]

    def _spent_seconds(self) -> float:
        return self._before_seconds + self._clock.monotonic_seconds() - self._started_seconds


def _parse(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(_SLURM_END, text, "must be seconds since the epoch") from None
