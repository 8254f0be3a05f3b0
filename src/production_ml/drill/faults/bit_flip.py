"""One bit of the newest checkpoint turns over on the disk, and then it is needed: a worker is killed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import ClassVar

from production_ml.core.errors import ProductionMLError
from production_ml.drill.faults.base import Strike
from production_ml.drill.scene import Scene


class BitFlip:
    """Flips a bit of a random file of the newest checkpoint, and sends SIGKILL to a worker."""

    signs: ClassVar[frozenset[str]] = frozenset({"checkpoint_damaged"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = False

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Nothing is needed."""

    def strike(self, scene: Scene, strike: Strike) -> None:
        # Killed first: a checkpoint that is committed in between would be loaded instead.
        os.kill(scene.pids[strike.rank], signal.SIGSTOP)
        scene.poll()
        there = [saved for saved in scene.checkpoints if saved.path.is_dir()]
        if not there:
            raise ProductionMLError(
                f"The script had saved no checkpoint when it had made step {strike.step}.",
                meaning="There is nothing in which a bit could be flipped.",
                cure="Let it save earlier, or drill a longer run.",
            )
        newest = max(there, key=lambda saved: saved.step)
        flip_bit(strike.chance.choice(sorted(path for path in newest.path.rglob("*") if path.is_file())), strike.chance)
        os.kill(scene.pids[strike.rank], signal.SIGKILL)

    def lift(self, scene: Scene) -> None:
        """The file is the script's own copy, in the drill's directory."""


def flip_bit(path: Path, chance: random.Random) -> None:
    """Turn one random bit of a file over."""
    with path.open("r+b") as file:
        position = chance.randrange(max(1, path.stat().st_size))
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))
