"""How fast training goes: measured between the moments at which the ranks look at the clock anyway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment between two steps."""

    step: int
    seconds: float
    """On the monotonic clock."""

    def pace_since(self, earlier: Mark) -> float | None:
        """Seconds per step from `earlier` to here; None where no step lies between them."""
        steps = self.step - earlier.step
        return (self.seconds - earlier.seconds) / steps if steps > 0 else None


class Pace:
    """Measured from save to save, all that happens in between included, and from look to look before the first save.

    Args:
        began: When time begins to count.
    """

    def __init__(self, began: Mark) -> None:
        self.last = began
        """The last save, or the beginning."""
        self.seconds_per_step: float | None = None
        self.measured_steps = 0
        """Over how many steps: as far as that can be trusted into the future, too."""
        self._look = began

    def look(self, mark: Mark) -> None:
        """Measure what came after the last look: the first steps are often slow, and should not count for ever."""
        self._measure(self._look, mark)
        self._look = mark

    def save(self, mark: Mark) -> None:
        """Measure from the last save, and begin anew."""
        self._measure(self.last, mark)
        self.last = self._look = mark

    def _measure(self, earlier: Mark, now: Mark) -> None:
        measured = now.pace_since(earlier)
        if measured is not None:
            self.seconds_per_step, self.measured_steps = measured, now.step - earlier.step
