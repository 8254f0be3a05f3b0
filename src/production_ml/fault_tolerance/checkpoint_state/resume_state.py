"""What a load gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from production_ml.fault_tolerance.checkpoint_format.verification import Damage


class ResumeState(dict[str, Any]):
    """Where to go on: `"step"` (0 when there is nothing to resume), `"metrics"`, and every extra value by its name.

    Attributes:
        damaged: What was wrong with newer checkpoints, which were passed over, and what was found under a wrong name,
            which a bad disk had changed; empty where all was well.
    """

    def __init__(self, values: Mapping[str, Any], damaged: list[Damage]) -> None:
        super().__init__(values)
        self.damaged = damaged
