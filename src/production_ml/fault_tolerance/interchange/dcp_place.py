"""Which checkpoint DCP means: a step, or a `checkpoint_id` that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory

_PREFIX: Final = "step-"


def checked_step(step: Any) -> int:
    """A step that was given.

    Raises:
        ConfigError: It is not a whole number of at least 0.
    """
    if type(step) is not int or step < 0:
        raise ConfigError("step", step, "must be a whole number, and not negative")
    return step


def named_step(checkpoint_id: Any) -> int | None:
    """The step that a checkpoint id names: `300`, or a path that ends with `step-00000300`; else None."""
    name = Path(str(checkpoint_id)).name.removeprefix(_PREFIX)
    return int(name) if name.isascii() and name.isdigit() else None


def place(directory: CheckpointDirectory, checkpoint_id: Any) -> tuple[CheckpointDirectory, int]:
    """The directory and step that a checkpoint id means."""
    step = named_step(checkpoint_id)
    if step is None:
        raise ConfigError(
            "checkpoint_id", str(checkpoint_id), "names no step", cure="Give a step, or a path that ends with step-…"
        )
    path = Path(str(checkpoint_id))
    is_path = path.name.startswith(_PREFIX) and len(path.parts) > 1
    return (CheckpointDirectory(path.parent) if is_path else directory), step
