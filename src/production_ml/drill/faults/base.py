"""What a fault must do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Protocol

from production_ml.core.errors import ProductionMLError
from production_ml.drill.scene import Scene


class FaultUnavailableError(ProductionMLError):
    """This fault cannot be caused on this machine; that is told, and counts neither as survived nor as failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """Where a fault hits."""

    rank: int
    """On one node, as a drill runs, it is the local rank too."""
    step: int
    """Once this rank has logged this step."""
    chance: random.Random
    """For whatever else a fault leaves to chance, such as which bit."""


class Fault(Protocol):
    """A fault is caused for real, and from outside of the script wherever that can be done.

    It is arranged before the run, strikes once, and is lifted when the run is over or the drill is interrupted; so
    whatever it mounts or stops is set right again in one place.
    """

    signs: ClassVar[frozenset[str]]
    """The events of the run log by which it is known to have been noticed."""
    keeps_weights: ClassVar[bool]
    """Whether a run that survives has to end with the very weights of the run without faults."""
    is_requeued: ClassVar[bool]
    """Whether the launcher is to end by it, and be started again as a scheduler would."""

    def arrange(self, scene: Scene, strike: Strike) -> None:
        """Prepare the scene, before the launcher is started.

        Raises:
            FaultUnavailableError: It cannot be caused here.
        """
        ...

    def strike(self, scene: Scene, strike: Strike) -> None:
        """Cause it, now."""
        ...

    def lift(self, scene: Scene) -> None:
        """Let go of everything; also where it never struck."""
        ...
