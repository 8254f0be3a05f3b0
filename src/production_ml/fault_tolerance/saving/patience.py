"""How long a rank waits for another: long for slow disks, briefly once this process is on its way out."""

from __future__ import annotations

import threading
import time
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock

COMMIT_TIMEOUT_SECONDS: Final = 1800.0
"""A rank's shard is given this long. A launcher notices a dead rank far sooner, and kills the ones that wait."""
FAREWELL_SECONDS: Final = 60.0
"""The same once the script has failed or ended: its peers may be gone, and an exit must not hang."""
_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.2


class Patience:
    """One wait of a background save, in pauses that grow."""

    def __init__(self, timeout_seconds: float = COMMIT_TIMEOUT_SECONDS, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.timeout_seconds = timeout_seconds
        self._clock = clock
        self._deadline = clock.monotonic_seconds() + timeout_seconds
        self._leaving = False
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def leave_soon(self, within_seconds: float = FAREWELL_SECONDS) -> None:
        """The process wants to end; another thread may say so."""
        self._leaving = True
        self._deadline = min(self._deadline, self._clock.monotonic_seconds() + within_seconds)

    def pause(self) -> bool:
        """Sleep a little; False when the time is over."""
        if not self._leaving and not threading.main_thread().is_alive():
            self.leave_soon()
        if self._clock.monotonic_seconds() >= self._deadline:
            return False
        time.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 1.5, _LONGEST_PAUSE_SECONDS)
        return True
