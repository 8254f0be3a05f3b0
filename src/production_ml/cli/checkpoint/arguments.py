"""What the checkpoint commands are given: a directory, a step in it, a metric; parsed where they come in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from production_ml.core.errors import ConfigError, InputFileError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
    from production_ml.fault_tolerance.retention import KeepBest

_STEP_NAME: Final = re.compile(r"step-(\d{8,})")


def complete_step(ctx: typer.Context, incomplete: str) -> list[str]:
    """The steps of the directory that was typed, for the shell."""
    try:
        names = [entry.name for entry in Path(ctx.params["directory"]).iterdir()]
    except (KeyError, TypeError, OSError):
        return []
    steps = sorted(int(match[1]) for match in map(_STEP_NAME.fullmatch, names) if match)
    return [str(step) for step in steps if str(step).startswith(incomplete)]


def complete_directory(incomplete: str) -> list[str]:
    """The directories that begin so, for the shell; text, not a path, because a place may be a URL."""
    parent, slash, begun = incomplete.rpartition("/")
    try:
        names = [entry.name for entry in Path(parent + slash or ".").iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(f"{parent}{slash}{name}" for name in names if name.startswith(begun))


Directory = Annotated[
    str,
    typer.Argument(metavar="DIR", help="The checkpoint_dir of a CheckpointManager.", autocompletion=complete_directory),
]
OptionalStep = Annotated[
    int | None,
    typer.Argument(metavar="STEP", min=0, help="The step; if left out, the newest.", autocompletion=complete_step),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def open_directory(name: str) -> CheckpointPlace:
    """The checkpoints at a path, or where a URL says.

    Raises:
        InputFileError: There is no such directory.
    """
    from production_ml.fault_tolerance.checkpoint_format.places import open_place

    path = Path(name)
    if "://" not in name and not path.is_dir():
        raise InputFileError(
            path,
            "is not a directory" if path.exists() else "does not exist",
            cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...).",
        )
    return open_place(name)


def existing_step(directory: CheckpointPlace, step: int | None) -> int:
    """The step that is meant: the newest where none was given.

    Raises:
        InputFileError: It is not there.
    """
    steps = directory.steps()
    if not steps:
        raise no_checkpoints(directory)
    if step is None:
        return steps[-1]
    if step not in steps:
        raise InputFileError(directory.url, f"holds no step {step}", cure=f"It holds {_listed(steps)}.")
    return step


def no_checkpoints(directory: CheckpointPlace) -> InputFileError:
    """The error for a directory without checkpoints."""
    return InputFileError(
        directory.url,
        "holds no checkpoints",
        cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...), with step-… in it.",
    )


def parse_place(place: str) -> tuple[CheckpointPlace, int]:
    """The checkpoint that is meant by `DIR`, `DIR@STEP` or `DIR/step-00000300`.

    Raises:
        InputFileError: It is not there.
    """
    parent, slash, last = place.rstrip("/").rpartition("/")
    named = _STEP_NAME.fullmatch(last)
    if named:
        return _opened(parent if slash else ".", int(named[1]))
    directory, at, step = place.rpartition("@")
    if at and step.isascii() and step.isdigit() and not Path(place).is_dir():
        return _opened(directory, int(step))
    return _opened(place, None)


def parse_best(text: str) -> KeepBest:
    """The policy that is meant by `METRIC`, `METRIC:min` or `METRIC:max`.

    Raises:
        ConfigError: There is no metric in it.
    """
    from production_ml.fault_tolerance.retention import KeepBest

    metric, colon, mode = text.rpartition(":")
    if not colon or mode not in ("min", "max"):
        metric, mode = text, "min"
    if not metric:
        raise ConfigError("--best", text, "names no metric", cure="Give METRIC, METRIC:min or METRIC:max.")
    return KeepBest(metric=metric, mode="max" if mode == "max" else "min")


def _opened(name: str, step: int | None) -> tuple[CheckpointPlace, int]:
    directory = open_directory(name)
    return directory, existing_step(directory, step)


def _listed(steps: list[int]) -> str:
    if len(steps) <= 8:
        return ", ".join(map(str, steps))
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
