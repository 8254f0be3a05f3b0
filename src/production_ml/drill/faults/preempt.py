"""The machine is wanted back: SIGTERM to the launcher, as SLURM, Kubernetes and spot instances send it."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene


class Preempt:
    """SIGTERM to the launcher, which is started again when it has ended, as a scheduler would."""

    signs: ClassVar[frozenset[str]] = frozenset({"preemption_noticed", "launch_finished"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = True

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Nothing is needed."""

    def strike(self, scene: Scene, strike: Strike) -> None:
        os.kill(scene.launcher_pid, signal.SIGTERM)

    def lift(self, scene: Scene) -> None:
        """Nothing is left."""
