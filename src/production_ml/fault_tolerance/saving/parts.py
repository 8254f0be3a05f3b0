"""A rank's part: the few words that say its shard is whole, or why it never will be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank wrote."""

    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    """Each with this rank's chunks alone."""
    rank_values: tuple[Any, ...] = ()
    """This rank's state that differs by rank, or all ranks'; empty where there is none."""


def describe_part(
    name: str, holdings: Sequence[Holding], file: FileEntry, hashes: Mapping[str, tuple[str, ...]]
) -> Part:
    """The part of a rank that wrote `holdings` to the shard of that name."""
    tensors: dict[str, TensorEntry] = {}
    for held in holdings:
        chunk = ChunkEntry(file=name, key=held.key, offsets=held.offsets, shape=held.box_shape, hashes=hashes[held.key])
        before = tensors[held.name].chunks if held.name in tensors else ()
        tensors[held.name] = TensorEntry(dtype=held.dtype, shape=held.shape, chunks=(*before, chunk))
    return Part({name: file}, tensors)


def encode_part(part: Part) -> bytes:
    """What a rank tells once its shard is stored."""
    return json.dumps(part_json(part)).encode()


def encode_failure(problem: str, *, errno: int | None = None, is_healed: bool = False) -> bytes:
    """What a rank tells where its shard will not come; the rest is as in `CheckpointWriteError`."""
    return json.dumps({"problem": problem, "errno": errno, "is_healed": is_healed}).encode()


def decode_part(rank: int, told: bytes) -> Part:
    """What a rank has told.

    Raises:
        CheckpointWriteError: Its part will not come.
    """
    document = json.loads(told)
    if "problem" in document:
        error = CheckpointWriteError(
            f"Rank {rank} could not write its shard: {document['problem']}.", meaning=UNCHANGED
        )
        error.errno, error.is_healed = document["errno"], document["is_healed"]
        raise error
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
