"""`checkpoint prune`: remove what no rule wants, and say of each step why it stays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from production_ml.cli.checkpoint.arguments import AsJson, Directory, no_checkpoints, open_directory, parse_best
from production_ml.cli.checkpoint.display import count_text, size_text
from production_ml.core.errors import CheckpointWriteError, ConfigError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
    from production_ml.fault_tolerance.retention import KeepPolicy


def prune(
    directory: Directory,
    keep_last: Annotated[int | None, typer.Option(metavar="N", min=1, help="Keep the N newest.")] = None,
    keep_every: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep the first at or past each multiple of N.")
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC[:min|max]", help="Keep the one with the best value; may be given again."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the checkpoints that no rule wants. Rules add up: each can only keep more.

    The newest always stays, and so does what is damaged or being read.

    Examples:
      production-ml checkpoint prune checkpoints --keep-last 3 --best loss --dry-run

      production-ml checkpoint prune checkpoints --keep-last 2 --keep-every 1000 --best accuracy:max
    """
    from production_ml.fault_tolerance.retention import Pruning

    opened = open_directory(directory)
    pruning = Pruning(opened, _policies(keep_last, keep_every, best or []))
    reasons = pruning.explain()
    if not reasons:
        raise no_checkpoints(opened)
    sizes = {info.step: info.size_bytes for info in opened.infos()}
    removed = [step for step, why in reasons.items() if not why]
    if not dry_run:
        removed = [step for step in removed if _remove(opened, step)]
    freed_bytes = sum(sizes.get(step, 0) for step in removed)
    if as_json:
        steps = [{"step": step, "kept_because": why, "removed": step in removed} for step, why in reasons.items()]
        typer.echo(json.dumps({"dry_run": dry_run, "freed_bytes": freed_bytes, "steps": steps}, indent=2))
        return
    Console().print(_table(reasons, removed, dry_run=dry_run))
    verb, kept = "Would remove" if dry_run else "Removed", len(reasons) - len(removed)
    typer.echo(f"{verb} {count_text(len(removed), 'checkpoint')} ({size_text(freed_bytes)}), kept {kept}.")


def _policies(keep_last: int | None, keep_every: int | None, best: list[str]) -> list[KeepPolicy]:
    from production_ml.fault_tolerance.retention import KeepEvery, KeepLast

    policies: list[KeepPolicy] = []
    if keep_last is not None:
        policies.append(KeepLast(n=keep_last))
    if keep_every is not None:
        policies.append(KeepEvery(n=keep_every))
    policies += [parse_best(metric) for metric in best]
    if not policies:
        raise ConfigError(
            "prune",
            None,
            "needs a rule, for without one all but the newest would go",
            cure="Add --keep-last N, --keep-every N or --best METRIC; look first with --dry-run.",
        )
    return policies


def _remove(directory: CheckpointPlace, step: int) -> bool:
    try:
        return directory.remove(step)
    except OSError as problem:
        raise CheckpointWriteError(
            f"{directory.committed(step)}: cannot be removed ({problem.strerror}).",
            cure="Give this user the right to write to the checkpoint directory.",
        ) from problem


def _table(reasons: dict[int, list[str]], removed: list[int], *, dry_run: bool) -> Table:
    table = Table()
    table.add_column("Step", justify="right", no_wrap=True)
    table.add_column("Outcome", overflow="fold")
    for step, why in reasons.items():
        if step in removed:
            outcome = Text("would be removed" if dry_run else "removed", style="red")
        else:
            outcome = Text(f"kept: {'; '.join(why) or 'being read'}")
        table.add_row(str(step), outcome)
    return table
