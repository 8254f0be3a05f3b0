"""`checkpoint diff`: whether two checkpoints hold the same state, and where they do not."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from production_ml.cli.checkpoint.arguments import AsJson, parse_place, with_a_way_on
from production_ml.cli.checkpoint.display import count_text, progress
from production_ml.core.errors import ExitCode

if TYPE_CHECKING:
    from production_ml.fault_tolerance.interchange.difference import Difference, TensorDifference

_SHOWN: Final = 20
_PLACE: Final = "DIR, DIR@STEP, or DIR/step-…; the newest step where none is given."


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=_PLACE)],
    b: Annotated[str, typer.Argument(metavar="B", help=_PLACE)],
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: names, types, shapes and values; the exit code is 1 where they differ.

    Steps, times and metrics do not count, and neither does the number of ranks.
    Tensors with equal hashes are not read.

    Examples:
      production-ml checkpoint diff checkpoints@100 checkpoints@200

      production-ml checkpoint diff run-a/checkpoints run-b/checkpoints --json
    """
    from production_ml.fault_tolerance.interchange.difference import compare
    from production_ml.fault_tolerance.interchange.source import CheckpointSource

    places = parse_place(a), parse_place(b)
    with with_a_way_on(*places), contextlib.ExitStack() as opened:
        total_bytes = sum(directory.manifest(step).size_bytes for directory, step in places)
        on_bytes = opened.enter_context(progress("comparing", total_bytes))
        one, other = (
            opened.enter_context(CheckpointSource(directory, step, on_bytes=on_bytes)) for directory, step in places
        )
        found = compare(one, other)
        paths = one.name, other.name
    if as_json:
        typer.echo(json.dumps({"a": paths[0], "b": paths[1], **found.to_dict()}, indent=2))
    else:
        _print(found, *paths)
    if not found.is_empty:
        raise typer.Exit(ExitCode.FAILED)


def _print(found: Difference, a: str, b: str) -> None:
    typer.echo(f"A: {a}\nB: {b}")
    if found.is_empty:
        typer.echo(f"The same: {count_text(found.same_tensors, 'tensor')}, and all values.")
        return
    console = Console()
    ordered = sorted(found.tensors, key=_weight)
    if ordered:
        console.print(_table(ordered[:_SHOWN]))
    if len(ordered) > _SHOWN:
        typer.echo(f"… and {count_text(len(ordered) - _SHOWN, 'tensor')} with smaller differences; all of them: --json")
    for path in found.values:
        console.print(Text(f"value {path}"), soft_wrap=True)
    typer.echo(f"{count_text(len(found.tensors), 'tensor')} different, {found.same_tensors:,} the same.")


def _weight(item: TensorDifference) -> tuple[bool, float]:
    """What weighs most comes first: other names and shapes, then the greatest gaps."""
    greatest = math.inf if item.greatest is None else item.greatest
    return item.kind == "values", -greatest


def _table(tensors: Sequence[TensorDifference]) -> Table:
    table = Table()
    table.add_column("Tensor", overflow="fold")
    table.add_column("Difference", overflow="fold")
    table.add_column("max |Δ|", justify="right", no_wrap=True)
    table.add_column("Elements", justify="right", overflow="fold")
    for item in tensors:
        row: tuple[Any, ...] = (Text(item.name), Text(_words(item)))
        if item.elements is None:
            table.add_row(*row, "", "")
            continue
        greatest = "not finite" if item.greatest is None else f"{item.greatest:.4g}"
        table.add_row(*row, greatest, f"{item.elements:,} of {item.of:,}")
    return table


def _words(item: TensorDifference) -> str:
    if item.kind == "values":
        return f"values ({item.a})"
    if item.kind in ("shape", "dtype"):
        return f"{item.a} / {item.b}"
    return f"{item.kind}: {item.a or item.b}"
