"""A worker gets a tenth of its time, as on a throttled GPU or beside a noisy neighbour."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import ClassVar

from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene

_STOPPED_SECONDS = 0.09
_RUNNING_SECONDS = 0.01
_FOR_SECONDS = 3.0


class SlowRank:
    """SIGSTOP and SIGCONT in turn, for three seconds."""

    signs: ClassVar[frozenset[str]] = frozenset({"straggler_found"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = False

    def __init__(self) -> None:
        self._is_lifted = threading.Event()
        self._thread: threading.Thread | None = None

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Nothing is needed."""

    def strike(self, scene: Scene, strike: Strike) -> None:
        self._thread = threading.Thread(target=self._slow_down, args=(scene.pids[strike.rank],))
        self._thread.start()

    def lift(self, scene: Scene) -> None:
        self._is_lifted.set()
        if self._thread is not None:
            self._thread.join()

    def _slow_down(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            for _ in range(int(_FOR_SECONDS / (_STOPPED_SECONDS + _RUNNING_SECONDS))):
                os.kill(pid, signal.SIGSTOP)
                self._is_lifted.wait(_STOPPED_SECONDS)
                os.kill(pid, signal.SIGCONT)
                if self._is_lifted.wait(_RUNNING_SECONDS):
                    return
