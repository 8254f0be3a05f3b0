"""The record of a copy: whose shard it is, of which step, and the hash of each of its blocks and of the record itself.

No torch here: the process that keeps copies has no use for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from production_ml.core.errors import CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.manifest_checks import (
    check_files,
    check_head,
    check_tensors,
    check_values,
    understanding,
)
from production_ml.fault_tolerance.saving.parts import Part, merge_parts, part_from_json, part_json
from production_ml.storage.hashing import hash_bytes

_HASH_DIGITS: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyHead:
    """Which copy it is."""

    step: int
    save_id: str
    """The same for the copies of all ranks, and no other save's."""
    rank: int
    world_size: int
    created_at: float
    """Wall seconds."""

    def head(self) -> dict[str, Any]:
        """This alone, in JSON: what ranks tell each other of it."""
        return {one.name: getattr(self, one.name) for one in fields(CopyHead)}


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyRecord(CopyHead):
    """What one rank's copy of one step is: with those of all ranks it makes up a manifest."""

    metrics: Mapping[str, float]
    """Rank 0's; the others' say nothing."""
    values: Any
    """Rank 0's, in JSON."""
    part: Part

    @property
    def size_bytes(self) -> int:
        """Bytes of the shard; 0 for a rank that holds no tensors."""
        return sum(file.size_bytes for file in self.part.files.values())


def copy_name(step: int, file: str = "") -> str:
    """What messages call a copy, or a file of it."""
    return f"memory:step-{step:08d}/{file}".rstrip("/")


def encode_record(record: CopyRecord) -> str:
    """As text that begins with the hash of the rest: memory may flip a bit in a record as in a tensor."""
    document = {
        **record.head(),
        "metrics": dict(record.metrics),
        "values": record.values,
        "part": part_json(record.part),
    }
    text = json.dumps(document)
    return hash_bytes(text.encode()) + text


def decode_record(encoded: str, *, step: int) -> CopyRecord:
    """The record that was encoded.

    Raises:
        DamagedCheckpointError: It is not what was encoded.
    """
    with understanding(copy_name(step), "the record of a copy", step=step):
        expected, text = encoded[:_HASH_DIGITS], encoded[_HASH_DIGITS:]
        if (found := hash_bytes(text.encode())) != expected:
            problem = f"the record of a copy does not match its hash (expected {expected[:8]}, found {found[:8]})"
            raise DamagedCheckpointError(copy_name(step), problem, step=step)
        document = json.loads(text)
        record = CopyRecord(**{**document, "part": part_from_json(document["part"])})
        _check(record)
        return record


def _check(record: CopyRecord) -> None:
    check_head(record.step, record.save_id, record.created_at, record.world_size)
    if type(record.rank) is not int or not 0 <= record.rank < record.world_size:
        raise ValueError(f"rank {record.rank!r} of {record.world_size}")
    # Whoever has the other ranks' records checks what the state names: here are this rank's tensors alone.
    check_files(record.part.files)
    check_tensors(record.part.tensors, record.part.files)
    for value in record.metrics.values():
        float(value)


def assemble(records: Sequence[CopyRecord]) -> Manifest:
    """The manifest of a step whose copies of all ranks are at hand.

    Args:
        records: Of one save, in rank order.

    Raises:
        DamagedCheckpointError: They do not make up a checkpoint.
    """
    first = records[0]
    try:
        whole = merge_parts([record.part for record in records])
    except CheckpointWriteError as problem:
        raise DamagedCheckpointError(copy_name(first.step), problem.what, step=first.step) from problem
    with understanding(copy_name(first.step), "the records of the copies", step=first.step):
        check_values(first.values, whole.rank_values, whole.tensors, world_size=first.world_size)
    return _manifest(first, whole)


def assemble_one(record: CopyRecord) -> Manifest:
    """What the manifest of the step says of one rank's shard."""
    return _manifest(record, record.part)


def _manifest(first: CopyRecord, part: Part) -> Manifest:
    return Manifest(
        step=first.step,
        save_id=first.save_id,
        created_at=first.created_at,
        world_size=first.world_size,
        metrics=first.metrics,
        values=first.values,
        rank_values=part.rank_values,
        files=part.files,
        tensors=part.tensors,
    )
