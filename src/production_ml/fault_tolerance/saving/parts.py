"""A rank's part: the small durable file that says its shard is whole, or why it never will be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    ChunkEntry,
    FileEntry,
    TensorEntry,
    file_entry,
    file_json,
    tensor_entry,
    tensor_json,
)
from production_ml.fault_tolerance.saving.order import UNCHANGED, Holding
from production_ml.storage.durable import replace_durably


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank wrote."""

    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    """Each with this rank's chunks alone."""
    rank_values: tuple[Any, ...] = ()
    """This rank's state that differs by rank, or all ranks'; empty where there is none."""


def shard_name(rank: int) -> str:
    """The file of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def part_name(rank: int) -> str:
    """The file that says a rank has written its tensors."""
    return f"rank-{rank:05d}.part.json"


def describe_part(
    rank: int, holdings: Sequence[Holding], file: FileEntry, hashes: Mapping[str, tuple[str, ...]]
) -> Part:
    """The part of a rank that wrote `holdings` to its shard."""
    tensors: dict[str, TensorEntry] = {}
    name = shard_name(rank)
    for held in holdings:
        chunk = ChunkEntry(file=name, key=held.key, offsets=held.offsets, shape=held.box_shape, hashes=hashes[held.key])
        before = tensors[held.name].chunks if held.name in tensors else ()
        tensors[held.name] = TensorEntry(dtype=held.dtype, shape=held.shape, chunks=(*before, chunk))
    return Part({name: file}, tensors)


def write_part(directory: Path, rank: int, part: Part) -> None:
    """Make a rank's part durable, at once or not at all."""
    _write(directory, rank, part_json(part))


def write_failure(directory: Path, rank: int, problem: str) -> None:
    """Tell rank 0 that this rank's part will not come."""
    _write(directory, rank, {"problem": problem})


def read_parts(directory: Path, ranks: Iterable[int]) -> dict[int, Part]:
    """The parts of those of `ranks` whose parts are there.

    Raises:
        CheckpointWriteError: A rank said that its part will not come.
        OSError: `directory` is gone, or cannot be read.
    """
    listed = fresh_listing(directory)
    return {rank: _read(directory, rank) for rank in ranks if part_name(rank) in listed}


def fresh_listing(directory: Path) -> set[str]:
    """The names in `directory` now.

    Over NFS a file that is asked for by name before it is there is taken to be missing for 30 to 60 seconds more. To
    open a directory asks the server.
    """
    return {entry.name for entry in directory.iterdir()}


def _read(directory: Path, rank: int) -> Part:
    document = json.loads((directory / part_name(rank)).read_bytes())
    if "problem" in document:
        raise CheckpointWriteError(f"Rank {rank} could not write its shard: {document['problem']}.", meaning=UNCHANGED)
    return part_from_json(document)


def merge_parts(parts: Sequence[Part]) -> Part:
    """All ranks' parts as one.

    Raises:
        CheckpointWriteError: The ranks do not hold the same tensors, or their chunks do not make them up.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        files.update(part.files)
        for name, entry in part.tensors.items():
            known = tensors.get(name)
            if known is None:
                tensors[name] = entry
            elif (known.dtype, known.shape) != (entry.dtype, entry.shape):
                raise CheckpointWriteError(
                    f"tensor {name!r} has other shapes or types on other ranks.", meaning=UNCHANGED
                )
            else:
                tensors[name] = replace(known, chunks=known.chunks + entry.chunks)
    for name, entry in tensors.items():
        if sum(math.prod(chunk.shape) for chunk in entry.chunks) != math.prod(entry.shape):
            raise CheckpointWriteError(
                f"tensor {name!r} is not whole: some rank did not write its part of it.", meaning=UNCHANGED
            )
    rank_values = tuple(value for part in parts for value in part.rank_values)
    return Part(files, tensors, rank_values if len(rank_values) == len(parts) else ())


def part_json(part: Part) -> dict[str, Any]:
    """A part as JSON."""
    return {
        "files": {name: file_json(entry) for name, entry in part.files.items()},
        "tensors": {name: tensor_json(entry) for name, entry in part.tensors.items()},
        "rank_values": part.rank_values,
    }


def part_from_json(document: dict[str, Any]) -> Part:
    """What `part_json` was asked of."""
    files = {name: file_entry(entry) for name, entry in document["files"].items()}
    tensors = {name: tensor_entry(entry) for name, entry in document["tensors"].items()}
    return Part(files, tensors, tuple(document["rank_values"]))


def _write(directory: Path, rank: int, document: dict[str, Any]) -> None:
    replace_durably(directory / part_name(rank), json.dumps(document).encode())
