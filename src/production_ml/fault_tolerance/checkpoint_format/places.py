"""Places for checkpoints by their names: a path is a directory."""

from __future__ import annotations

from pathlib import Path

from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory


def open_place(name: str) -> CheckpointPlace:
    """The place of that path; it need not be there yet."""
    return CheckpointDirectory(Path(name))
