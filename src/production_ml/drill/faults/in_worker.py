"""Faults that can only be caused within a worker: what they have in common is how they get there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import ClassVar, Literal

import production_ml.drill.in_worker
from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene

DRILL_VARIABLE = "PRODUCTION_ML_DRILL"
_HOOKS = Path(next(iter(production_ml.drill.in_worker.__path__)))


class InWorker:
    """Has every worker's interpreter import `drill/in_worker/sitecustomize.py` at its start.

    The script needs no change for it: an interpreter looks for a module of that name by itself (Python's `site`).
    """

    kind: ClassVar[Literal["oom", "nan"]]
    is_requeued: ClassVar[bool] = False

    def arrange(self, scene: Scene, strike: Strike) -> None:
        marker = str(scene.struck_marker)
        fault = {"fault": self.kind, "rank": strike.rank, "step": strike.step, "marker": marker}
        path = [str(_HOOKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        scene.environment |= {DRILL_VARIABLE: json.dumps(fault), "PYTHONPATH": os.pathsep.join(path)}

    def strike(self, scene: Scene, strike: Strike) -> None:
        """The worker does it by itself, at its step."""

    def lift(self, scene: Scene) -> None:
        """It strikes once."""
