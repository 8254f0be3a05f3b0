"""`production-ml checkpoint`: see what a checkpoint directory holds, and check every byte of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from production_ml.core.clock import iso_utc
from production_ml.core.errors import DamagedCheckpointError, ExitCode, InputFileError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint_dir of a CheckpointManager.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

app = typer.Typer(no_args_is_help=True, help="Checkpoints: list and verify.")


def register(cli: typer.Typer) -> None:
    """Add the group to the command line."""
    cli.add_typer(app, name="checkpoint")


@app.command("list")
def list_checkpoints(directory: Directory, as_json: AsJson = False) -> None:
    """Show the checkpoints, oldest first, as their manifests describe them.

    The bytes of the tensors are not read: that is what `verify` is for.

    Example: production-ml checkpoint list checkpoints
    """
    opened = _open(directory)
    described = [_describe(opened, step) for step in opened.steps()]
    # What a running training removed meanwhile is not damaged.
    rows = [row for row in described if row["problem"] is None or opened.identity(row["step"]) is not None]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("Step", "Saved", "Bytes", "Ranks", "Metrics", "Manifest")
    for row in rows:
        if row["problem"]:
            table.add_row(str(row["step"]), "", "", "", "", row["problem"])
            continue
        metrics = ", ".join(f"{name}={value:.6g}" for name, value in _numbers(row["metrics"]).items())
        size_bytes, ranks = f"{row['size_bytes']:,}", str(row["world_size"])
        table.add_row(str(row["step"]), row["created_at"], size_bytes, ranks, metrics, "sound")
    Console().print(table)


@app.command()
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Check every byte of every checkpoint against its hash; the exit code is 3 where one is damaged, 2 where none is.

    Each damaged file is named, with the tensor that is hit. Nothing is changed. Checkpoints in quarantine/ are not
    looked at: they are known to be damaged.

    Example: production-ml checkpoint verify checkpoints
    """
    from production_ml.fault_tolerance.checkpoint_format import verify_all

    damage = verify_all(_open(directory))
    if not damage:
        # A check of nothing that says "sound" would be green for ever with a wrong path.
        raise InputFileError(
            directory,
            "holds no checkpoints, so there is nothing to verify",
            cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...), with step-… in it.",
        )
    if as_json:
        listed: list[dict[str, Any]] = [
            {"step": step, "sound": not found, "damage": [item.to_dict() for item in found]}
            for step, found in damage.items()
        ]
        typer.echo(json.dumps(listed, indent=2))
    else:
        for step, found in damage.items():
            typer.echo(f"step {step}: {'DAMAGED' if found else 'sound'}")
            for item in found:
                typer.echo(f"  {item}")
    if any(damage.values()):
        raise typer.Exit(ExitCode.DAMAGED)


def _open(directory: Path) -> CheckpointDirectory:
    from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory

    if not directory.is_dir():
        raise InputFileError(
            directory,
            "is not a directory" if directory.exists() else "does not exist",
            cure="Name the directory that was given to CheckpointManager(checkpoint_dir=...).",
        )
    return CheckpointDirectory(directory)


def _describe(directory: CheckpointDirectory, step: int) -> dict[str, Any]:
    from production_ml.core.structured_logging import json_safe

    described: dict[str, Any] = {"step": step, "path": str(directory.committed(step))}
    try:
        manifest = directory.manifest(step)
    except DamagedCheckpointError as error:
        return {**described, "problem": error.problem}
    return {
        **described,
        "created_at": iso_utc(manifest.created_at),
        "size_bytes": manifest.size_bytes,
        "world_size": manifest.world_size,
        "metrics": json_safe(dict(manifest.metrics)),
        "problem": None,
    }


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
