"""What the checkpoint commands are given: a directory, a step in it, a metric; parsed where they come in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from production_ml.core.errors import ConfigError, InputFileError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory
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


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint_dir of a CheckpointManager.")]
OptionalStep = Annotated[
    int | None,
    typer.Argument(metavar="STEP", min=0, help="The step; if left out, the newest.", autocompletion=complete_step),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def open_directory(path: Path) -> CheckpointDirectory:
    """The directory of checkpoints at `path`.

    Raises:
        InputFileError: It is not there.
    """
    from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory

    if not path.is_dir():
        raise InputFileError(
            path,
            "is not a directory" if path.exists() else "does not exist",
            cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...).",
        )
    return CheckpointDirectory(path)


def existing_step(directory: CheckpointDirectory, step: int | None) -> int:
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
        raise InputFileError(directory.path, f"holds no step {step}", cure=f"It holds {_listed(steps)}.")
    return step


def no_checkpoints(directory: CheckpointDirectory) -> InputFileError:
    """The error for a directory without checkpoints."""
    return InputFileError(
        directory.path,
        "holds no checkpoints",
        cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...), with step-… in it.",
    )


def parse_place(place: str) -> tuple[CheckpointDirectory, int]:
    """The checkpoint that is meant by `DIR`, `DIR@STEP` or `DIR/step-00000300`.

    Raises:
        InputFileError: It is not there.
    """
    path = Path(place)
    named = _STEP_NAME.fullmatch(path.name)
    if named:
        return _opened(path.parent, int(named[1]))
    parent, at, step = place.rpartition("@")
    if at and step.isascii() and step.isdigit() and not path.is_dir():
        return _opened(Path(parent), int(step))
    return _opened(path, None)


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


def _opened(path: Path, step: int | None) -> tuple[CheckpointDirectory, int]:
    directory = open_directory(path)
    return directory, existing_step(directory, step)


def _listed(steps: list[int]) -> str:
    if len(steps) <= 8:
        return ", ".join(map(str, steps))
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
