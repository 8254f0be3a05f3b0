"""Time that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """A `Clock` whose two hands move together, by `advance` alone.

    Args:
        wall_seconds: Where the wall clock begins; 2026-01-01 12:00 UTC by default.
    """

    def __init__(self, wall_seconds: float = 1_767_268_800.0) -> None:
        self._wall_seconds = wall_seconds
        self._monotonic_seconds = 0.0

    def wall_seconds(self) -> float:
        return self._wall_seconds

    def monotonic_seconds(self) -> float:
        return self._monotonic_seconds

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._wall_seconds += seconds
        self._monotonic_seconds += seconds

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock, as an NTP correction does; the monotonic one goes on undisturbed."""
        self._wall_seconds = seconds
