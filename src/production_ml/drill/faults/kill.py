"""A worker is gone without a word: SIGKILL, as the kernel's out-of-memory killer sends it."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene


class Kill:
    """SIGKILL to one worker."""

    signs: ClassVar[frozenset[str]] = frozenset({"worker_failed"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = False

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Nothing is needed."""

    def strike(self, scene: Scene, strike: Strike) -> None:
        os.kill(scene.pids[strike.rank], signal.SIGKILL)

    def lift(self, scene: Scene) -> None:
        """Nothing is left."""
