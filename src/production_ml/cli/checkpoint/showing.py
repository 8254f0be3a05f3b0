"""`checkpoint show`: all that one checkpoint says of itself, without reading a tensor."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from production_ml.cli.checkpoint.arguments import (
    AsJson,
    Directory,
    OptionalStep,
    existing_step,
    open_directory,
    with_a_way_on,
)
from production_ml.cli.checkpoint.display import count_text, metrics_text, size_text
from production_ml.core.clock import iso_utc

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format import Manifest, TensorEntry
    from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace

_LARGEST: Final = 15
_CHILDREN: Final = 12
_LEAF_CHARACTERS: Final = 70


def show(
    directory: Directory,
    step: OptionalStep = None,
    tensors: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Show all tensors of these names, such as 'model.*.weight'."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one checkpoint: when and by how many ranks it was saved, its values, and its tensors, largest first.

    No tensor is read, so this is quick, and tells nothing of damage to one:
    that is what verify is for.

    Examples:
      production-ml checkpoint show checkpoints

      production-ml checkpoint show checkpoints 300 --tensors 'optimizer.*'
    """
    opened = open_directory(directory)
    chosen = existing_step(opened, step)
    with with_a_way_on((opened, chosen)):
        manifest = opened.manifest(chosen)
    described = _tensors(manifest, tensors)
    if as_json:
        typer.echo(json.dumps(_as_json(opened, manifest, described), indent=2))
        return
    console = Console()
    _print_head(console, opened, manifest)
    if tensors is None:
        console.print(_values_tree(manifest))
    shown = described if tensors is not None else described[:_LARGEST]
    console.print(_table(shown))
    if len(shown) < len(described):
        more = count_text(len(described) - len(shown), "smaller tensor")
        console.print(f"… and {more}; all of them: --tensors '*'", highlight=False)


def _print_head(console: Console, directory: CheckpointPlace, manifest: Manifest) -> None:
    files = count_text(len(manifest.files), "file")
    lines = [
        f"step {manifest.step} · saved {iso_utc(manifest.created_at)} by {count_text(manifest.world_size, 'rank')}",
        f"{size_text(manifest.size_bytes)} in {files} · {count_text(len(manifest.tensors), 'tensor')}",
        f"metrics: {metrics_text(manifest.metrics) or 'none'}",
        str(directory.committed(manifest.step)),
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _tensors(manifest: Manifest, pattern: str | None) -> list[dict[str, Any]]:
    """Largest first."""
    described = [
        {
            "name": name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "size_bytes": _size_bytes(entry),
            "files": sorted({chunk.file for chunk in entry.chunks}),
        }
        for name, entry in manifest.tensors.items()
        if pattern is None or fnmatch.fnmatchcase(name, pattern)
    ]
    return sorted(described, key=lambda item: (-item["size_bytes"], item["name"]))


def _size_bytes(entry: TensorEntry) -> int:
    from production_ml.fault_tolerance.checkpoint_format.element_types import size_bytes

    return size_bytes(entry.dtype, entry.shape)


def _table(described: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("Tensor", overflow="fold")
    table.add_column("Type", no_wrap=True)
    table.add_column("Shape", overflow="fold")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Files", justify="right", no_wrap=True)
    for item in described:
        shape = str(item["shape"]) if item["shape"] else "one number"
        size = size_text(item["size_bytes"])
        table.add_row(Text(item["name"]), item["dtype"], shape, size, str(len(item["files"])))
    return table


def _values_tree(manifest: Manifest) -> Tree:
    tree = Tree("values")
    for key, value in manifest.values.items():
        _add(tree, key, _named_by_kind(value) if key == "extra" else value)
    for rank, value in enumerate(manifest.rank_values):
        _add(tree, f"rank {rank}", value)
    return tree


def _named_by_kind(extras: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The extras without the layer that says of each whether it is a plain value or the state of an object."""
    return {
        name if extra["kind"] == "value" else f"{name} ({extra['kind']})": extra["value"]
        for name, extra in extras.items()
    }


def _add(tree: Tree, key: str, value: Any) -> None:
    """A branch for a mapping; what holds nothing but tensors is counted, not listed."""
    leaf = _leaf(value)
    if leaf is not None:
        tree.add(Text(f"{key}: {leaf}"))
        return
    branch = tree.add(Text(key))
    items = list(value.items() if isinstance(value, dict) else ((str(index), item) for index, item in enumerate(value)))
    for inner_key, inner in items[:_CHILDREN]:
        _add(branch, inner_key, inner)
    if len(items) > _CHILDREN:
        branch.add(Text(f"… {len(items) - _CHILDREN:,} more"))


def _leaf(value: Any) -> str | None:
    """A value on one line; None where it has to branch."""
    if isinstance(value, dict) and len(value) == 1:
        ((mark, content),) = value.items()
        if mark in ("$tensor", "$array"):
            return f"tensor {content}"
        if mark == "$float":
            return str(content)
        if mark == "$tuple":
            value = content
    leaves = list(_leaves(value))
    if leaves and all(isinstance(leaf, dict) for leaf in leaves):
        return count_text(len(leaves), "tensor")
    if isinstance(value, dict) and value:
        return None
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return None
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LEAF_CHARACTERS:
        return text
    return count_text(len(value), "item") if isinstance(value, list) else f"{text[: _LEAF_CHARACTERS - 1]}…"


def _leaves(value: Any) -> Iterator[Any]:
    """Plain values, and the marks of tensors as they are."""
    if isinstance(value, dict) and set(value) in ({"$tensor"}, {"$array"}):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _as_json(directory: CheckpointPlace, manifest: Manifest, described: list[dict[str, Any]]) -> dict[str, Any]:
    from production_ml.core.structured_logging import json_safe

    return {
        "step": manifest.step,
        "path": str(directory.committed(manifest.step)),
        "created_at": iso_utc(manifest.created_at),
        "world_size": manifest.world_size,
        "size_bytes": manifest.size_bytes,
        "metrics": json_safe(dict(manifest.metrics)),
        "files": {name: entry.size_bytes for name, entry in manifest.files.items()},
        "values": manifest.values,
        "rank_values": list(manifest.rank_values),
        "tensors": described,
    }
