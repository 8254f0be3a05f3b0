"""`checkpoint list`: what a checkpoint directory holds, a line each."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from production_ml.cli.checkpoint.arguments import AsJson, Directory, open_directory, parse_best
from production_ml.cli.checkpoint.display import metrics_text, progress, size_text
from production_ml.core.clock import iso_utc
from production_ml.core.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import Manifest
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace


def list_checkpoints(
    directory: Directory,
    verify: Annotated[bool, typer.Option("--verify", help="Check every byte, which reads all of it.")] = False,
    best: Annotated[
        str, typer.Option(metavar="METRIC[:min|max]", help="Mark the checkpoint with the best value of this metric.")
    ] = "loss",
    as_json: AsJson = False,
) -> None:
    """Show the checkpoints, oldest first, as their manifests describe them.

    The column State says what was looked at. "not verified": the manifest, and
    the names and sizes of the files. "good": every byte, with --verify.
    "damaged" comes with the reason; so does "unreadable", where this version or
    this user cannot read it.

    Examples:
      production-ml checkpoint list checkpoints

      production-ml checkpoint list checkpoints --verify --best accuracy:max
    """
    opened = open_directory(directory)
    chosen = parse_best(best)
    described = [_describe(opened, step, is_verified=verify) for step in opened.steps()]
    # What a running training removed meanwhile is not damaged.
    rows = [row for row in described if row["problem"] is None or opened.identity(row["step"]) is not None]
    best_step = chosen.best_step(opened.infos())
    for row in rows:
        row["best"] = row["step"] == best_step
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        Console().print(_table(rows))
        if any(row["state"] == "damaged" for row in rows):
            typer.echo(f"See all of the damage: production-ml checkpoint verify {shlex.quote(directory)}")
    else:
        typer.echo(f"{directory} holds no checkpoints.")


def _describe(directory: CheckpointPlace, step: int, *, is_verified: bool) -> dict[str, Any]:
    from production_ml.core.structured_logging import json_safe
    from production_ml.fault_tolerance.interchange.parallel_verification import structural_problem

    described: dict[str, Any] = {"step": step, "path": str(directory.committed(step))}
    try:
        manifest = directory.manifest(step)
    except DamagedCheckpointError as error:
        return {**described, "metrics": {}, "state": "damaged", "problem": error.problem}
    except CheckpointError as error:
        # Such as one that a newer version wrote: it must not hide the others.
        return {**described, "metrics": {}, "state": "unreadable", "problem": error.what}
    problem = structural_problem(directory, manifest)
    if is_verified and problem is None:
        problem = _verified(directory, manifest)
    sound = "good" if is_verified else "not verified"
    return {
        **described,
        "created_at": iso_utc(manifest.created_at),
        "size_bytes": manifest.size_bytes,
        "world_size": manifest.world_size,
        "metrics": json_safe(dict(manifest.metrics)),
        "state": sound if problem is None else "damaged",
        "problem": problem,
    }


def _verified(directory: CheckpointPlace, manifest: Manifest) -> str | None:
    from production_ml.fault_tolerance.interchange.parallel_verification import verify_in_parallel

    with directory.reading(manifest.step), progress(f"step {manifest.step}", manifest.size_bytes) as on_bytes:
        damage = verify_in_parallel(directory, manifest, on_bytes=on_bytes)
    if not damage:
        return None
    first = damage[0]
    return f"tensor {first.tensor!r} {first.problem}" if first.tensor is not None else first.problem


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("Step", justify="right", no_wrap=True)
    table.add_column("Saved (UTC)", min_width=10)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Ranks", justify="right", no_wrap=True)
    table.add_column("Metrics", overflow="fold")
    table.add_column("State", overflow="fold")
    for row in rows:
        step = f"{row['step']} *" if row["best"] else f"{row['step']}  "
        # Metrics' names and problems are other people's text, in which brackets are no markup.
        told = f"{row['state']}: {row['problem']}" if row["problem"] else row["state"]
        state = Text(told, style=_STYLES[row["state"]])
        if "created_at" not in row:
            table.add_row(step, "", "", "", "", state)
            continue
        saved = row["created_at"].partition(".")[0].replace("T", " ")
        cells = (step, saved, size_text(row["size_bytes"]), str(row["world_size"]))
        table.add_row(*cells, Text(metrics_text(row["metrics"])), state)
    if any(row["best"] for row in rows):
        table.caption = "* best"
        table.caption_justify = "left"
    return table


_STYLES = {"good": "green", "not verified": "", "damaged": "red", "unreadable": "yellow"}
