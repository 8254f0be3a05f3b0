"""What the checkpoint commands are given: a directory, a step in it, a metric; parsed where they come in."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from production_ml.core.errors import ConfigError, DamagedCheckpointError, InputFileError

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
    typer.Argument(
        metavar="DIR",
        help="The checkpoint_dir of a CheckpointManager: a path, or a URL such as s3://bucket/run.",
        autocompletion=complete_directory,
    ),
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
    from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
    from production_ml.fault_tolerance.checkpoint_format.places import open_place

    place = open_place(name)
    if isinstance(place, CheckpointDirectory) and not place.path.is_dir():
        raise InputFileError(
            place.path,
            "is not a directory" if place.path.exists() else "does not exist",
            cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...).",
        )
    return place


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


@contextlib.contextmanager
def with_a_way_on(*places: tuple[CheckpointPlace, int]) -> Iterator[None]:
    """Within it, damage of one of these checkpoints comes out with what to do next.

    Raises:
        DamagedCheckpointError: One of them is damaged.
    """
    try:
        yield
    except DamagedCheckpointError as damaged:
        for directory, step in places:
            if damaged.name.startswith(str(directory.committed(step))):
                raise DamagedCheckpointError(
                    damaged.name,
                    damaged.problem,
                    step=step,
                    tensor=damaged.tensor,
                    meaning="A training that resumes sets it aside, and goes on from the newest sound one.",
                    cure=_way_on(directory, step),
                ) from damaged
        raise


def _way_on(directory: CheckpointPlace, step: int) -> str:
    verify = f"See all that is damaged: production-ml checkpoint verify {shlex.quote(directory.url)} {step}"
    earlier = [other for other in directory.steps() if other < step and directory.is_whole(other)]
    return f"{verify}\nOr take an earlier step; the next one is {earlier[-1]}." if earlier else verify


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
