"""`checkpoint verify`: every byte against its hash, and an exit code that a script can trust."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from production_ml.cli.checkpoint.arguments import (
    AsJson,
    Directory,
    complete_step,
    existing_step,
    no_checkpoints,
    open_directory,
)
from production_ml.cli.checkpoint.display import count_text, progress
from production_ml.core.errors import DamagedCheckpointError, ExitCode

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import Damage
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace


def verify(
    directory: Directory,
    step: Annotated[
        int | None,
        typer.Argument(metavar="STEP", min=0, help="The step; if left out, all of them.", autocompletion=complete_step),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte against its hash; the exit code is 3 where a checkpoint is damaged, 2 where there is none.

    Each damaged file is named, with the tensor that is hit. Nothing is changed.
    Checkpoints in quarantine/ are not looked at: they are known to be damaged.

    Examples:
      production-ml checkpoint verify checkpoints

      production-ml checkpoint verify checkpoints 300 --json
    """
    from production_ml.fault_tolerance.checkpoint_format import Damage

    opened = open_directory(directory)
    steps = opened.steps() if step is None else [existing_step(opened, step)]
    misnamed = opened.misnamed() if step is None else ()
    if not steps and not misnamed:
        # A check of nothing that says "sound" would be green for ever with a wrong path.
        raise no_checkpoints(opened)
    damage: dict[int, list[Damage]] = {}
    for one in steps:
        found = damage_of(opened, one)
        if found is not None:
            damage[one] = found
            if not as_json:
                _tell(one, found)
    for lost in misnamed:
        damage.setdefault(lost.step, []).append(Damage.of_name(lost))
        if not as_json:
            _tell(lost.step, [Damage.of_name(lost)])
    if step is None and damage and not as_json:
        _tell_what_is_left(damage)
    if as_json:
        listed = [
            {"step": one, "sound": not found, "damage": [item.to_dict() for item in found]}
            for one, found in damage.items()
        ]
        typer.echo(json.dumps(listed, indent=2))
    if any(damage.values()):
        raise typer.Exit(ExitCode.DAMAGED)


def _tell_what_is_left(damage: dict[int, list[Damage]]) -> None:
    sound = [step for step, found in damage.items() if not found]
    if len(sound) == len(damage):
        return
    left = (
        f"A training that resumes sets aside what is damaged, and goes on from step {max(sound)}."
        if sound
        else "None is sound: a training that resumes would begin at step 0."
    )
    typer.echo(f"{len(damage) - len(sound)} of {count_text(len(damage), 'checkpoint')} damaged. {left}")


def damage_of(directory: CheckpointPlace, step: int) -> list[Damage] | None:
    """What is wrong with a checkpoint; None where a running training removed or replaced it meanwhile."""
    from production_ml.fault_tolerance.checkpoint_format import Damage
    from production_ml.fault_tolerance.interchange.parallel_verification import verify_in_parallel

    identity = directory.identity(step)
    with directory.reading(step):
        try:
            manifest = directory.manifest(step)
            with progress(f"step {step}", manifest.size_bytes) as on_bytes:
                found = verify_in_parallel(directory, manifest, on_bytes=on_bytes)
        except DamagedCheckpointError as error:
            found = [Damage.of(error)]
    return found if not found or directory.identity(step) == identity else None


def _tell(step: int, found: list[Damage]) -> None:
    typer.echo(f"step {step}: {'DAMAGED' if found else 'sound'}")
    for item in found:
        typer.echo(f"  {item}")
