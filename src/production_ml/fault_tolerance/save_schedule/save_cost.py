"""What a save costs the training: the time it holds it up, and what it slows down the steps that run beside it."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

from production_ml.fault_tolerance.save_schedule.pace import Mark

_SAVES_REMEMBERED: Final = 9


class SaveCost:
    """Learns from each save what it cost.

    The steps from a save's end to the first step boundary after it was written are compared with those that followed,
    until the next save: what they took longer is the share of the slowdown.
    """

    def __init__(self) -> None:
        # Their median counts: the first save warms its buffers up, and a neighbour's burst of writes is no rule.
        self._costs: deque[float] = deque(maxlen=_SAVES_REMEMBERED)
        self._stall_seconds: float | None = None
        self._saved: Mark | None = None
        self._written: Mark | None = None

    @property
    def seconds(self) -> float | None:
        """The cost of one save; None before the first."""
        costs = list(self._costs)
        if not costs and self._stall_seconds is not None:
            costs = [self._stall_seconds]
        return max(0.0, statistics.median(costs)) if costs else None

    def saved(self, mark: Mark, stall_seconds: float) -> None:
        """A save returned at `mark`, for which training stood still for `stall_seconds`."""
        if self._stall_seconds is not None:
            began = Mark(mark.step, mark.seconds - stall_seconds)
            self._costs.append(self._stall_seconds + self._slowdown_seconds(until=began))
        self._stall_seconds = stall_seconds
        self._saved, self._written = mark, None

    def written(self, boundary: Mark) -> None:
        """The first step after the newest save was written has begun."""
        if self._written is None:
            self._written = boundary

    def _slowdown_seconds(self, until: Mark) -> float:
        """Below zero where the clock's noise is greater than the cost: the median has to see both sides of it."""
        if self._saved is None or self._written is None:
            return 0.0  # what was left to write then stood in the next save's stall
        free_pace = until.pace_since(self._written)
        if free_pace is None:
            return 0.0  # nothing to compare with
        busy_steps = self._written.step - self._saved.step
        return (self._written.seconds - self._saved.seconds) - busy_steps * free_pace
