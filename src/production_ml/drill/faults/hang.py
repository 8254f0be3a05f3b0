"""A worker stands still and does not end: SIGSTOP, as a driver that hangs or a swapped-out host look to its peers."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import ClassVar

from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene


class Hang:
    """SIGSTOP to one worker, for good."""

    signs: ClassVar[frozenset[str]] = frozenset({"hang_found", "hang_suspected", "worker_failed"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = False

    def __init__(self) -> None:
        self._stopped: int | None = None

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Nothing is needed."""

    def strike(self, scene: Scene, strike: Strike) -> None:
        self._stopped = scene.pids[strike.rank]
        os.kill(self._stopped, signal.SIGSTOP)

    def lift(self, scene: Scene) -> None:
        # It may have been killed long ago; then nobody else has its number yet, or SIGCONT does no harm to who has.
        if self._stopped is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._stopped, signal.SIGCONT)
