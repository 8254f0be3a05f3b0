"""The one place that reads the clock, so that a test can hold time still."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """Two clocks in one: the wall says when, the monotonic one says how long."""

    def wall_seconds(self) -> float:
        """Seconds since the Unix epoch; may jump."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def wall_seconds(self) -> float:
        return time.time()

    def monotonic_seconds(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK: Clock = SystemClock()


def iso_utc(wall_seconds: float) -> str:
    """`2026-01-31T12:00:00.000Z`, for people and for JSON."""
    moment = datetime.fromtimestamp(wall_seconds, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
