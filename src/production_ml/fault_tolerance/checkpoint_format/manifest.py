"""The manifest: what a checkpoint holds, where, and the hash of each piece. Durable, it is the commit."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import CheckpointError, CheckpointMismatchError, DamagedCheckpointError
from production_ml.core.structured_logging import json_safe
from production_ml.storage.hashing import hash_bytes

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "production_ml.checkpoint"
VERSION: Final = 1
_NO_HASH: Final = b'"hash": ""'
_HASH: Final = re.compile(rb'"hash": "([0-9a-f]{32})"')
_SAVE_ID: Final = re.compile(rb'"save_id": "([0-9a-f]+)"')
_HEAD_BYTES: Final = 256
_GONE_OR_BROKEN: Final = {errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EUCLEAN}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A shard as a whole; its header's hash and its chunks' hashes together cover every byte of it."""

    size_bytes: int
    header_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkEntry:
    """A box of a tensor, as one rank wrote it."""

    file: str
    key: str
    """Its name in the safetensors file; tied tensors share one."""
    offsets: tuple[int, ...]
    """Where the box begins in the whole tensor, per dimension."""
    shape: tuple[int, ...]
    hash: str
    """XXH3-128 of its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A whole tensor, which its chunks cover without overlap."""

    dtype: str
    """As safetensors names it: `F32`, `BF16`, …"""
    shape: tuple[int, ...]
    chunks: tuple[ChunkEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One committed checkpoint."""

    step: int
    save_id: str
    """Hex digits that no other save has: ranks know by it whether theirs was committed."""
    created_at: float
    """Wall seconds."""
    world_size: int
    metrics: Mapping[str, float]
    values: Any
    """The state that is not tensors, as `state_tree` encodes it."""
    rank_values: tuple[Any, ...] = ()
    """The same for state that differs by rank, one of each in rank order; empty where there is none."""
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(file.size_bytes for file in self.files.values())


DTYPE_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""safetensors' element types and their sizes."""


def encode_manifest(manifest: Manifest) -> bytes:
    """One JSON document that holds the hash of all its other bytes: a manifest is verified like any tensor."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "hash": "",
        "save_id": manifest.save_id,
        "step": manifest.step,
        "created_at": manifest.created_at,
        "world_size": manifest.world_size,
        "metrics": json_safe(dict(manifest.metrics)),
        "files": {name: file_json(file) for name, file in manifest.files.items()},
        "values": manifest.values,
        "tensors": {name: tensor_json(entry) for name, entry in manifest.tensors.items()},
    }
    data = json.dumps(document, allow_nan=False).encode() + b"\n"
    return data.replace(_NO_HASH, b'"hash": "%s"' % hash_bytes(data).encode(), 1)


def read_manifest(path: Path, *, step: int) -> Manifest:
    """Read and verify the manifest of `step`.

    Raises:
        DamagedCheckpointError: It is missing, is not what was written, or belongs to another step.
        CheckpointMismatchError: It is sound, but of a format that this release does not read.
        CheckpointError: The system refuses to read it.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise unreadable(path, problem, step=step) from problem
    document = json.loads(_verified(data, path, step))
    if document["version"] != VERSION:
        raise CheckpointMismatchError(
            f"{path}: has the format version {document['version']}; this release reads {VERSION}.",
            meaning="Nothing was loaded, and the checkpoint is left as it is.",
            cure="Load it with the release of production_ml that wrote it, or a newer one.",
        )
    manifest = _manifest(document)
    if manifest.step != step:
        raise DamagedCheckpointError(path, f"is the manifest of step {manifest.step}", step=step)
    return manifest


def read_save_id(path: Path) -> str | None:
    """The id of the save that wrote the manifest at `path`, by a look at its head; None where there is none."""
    try:
        with path.open("rb") as file:
            found = _SAVE_ID.search(file.read(_HEAD_BYTES))
    except OSError:
        return None
    return found[1].decode() if found else None


def unreadable(path: Path, problem: OSError, *, step: int) -> CheckpointError:
    """What a file system's error means: damage where the bytes are lost, else a refusal that a person can cure."""
    if problem.errno == errno.ENOENT:
        return DamagedCheckpointError(path, "the file is missing", step=step)
    if problem.errno in _GONE_OR_BROKEN:
        return DamagedCheckpointError(path, f"cannot be read ({problem.strerror})", step=step)
    return CheckpointError(
        f"{path}: cannot be read ({problem.strerror}).",
        meaning="Nothing was loaded, and the checkpoint is left as it is.",
        cure="Give this user the right to read the checkpoint directory, then start again.",
    )


def _verified(data: bytes, path: Path, step: int) -> bytes:
    """`data` itself, if it holds the hash of all its other bytes.

    The hash is taken over the raw bytes: parsed JSON would let a flipped bit pass where the meaning is the same
    (1e-05 and 1E-05 differ in one).
    """
    marked = _HASH.search(data, 0, _HEAD_BYTES)
    if marked is None:
        raise DamagedCheckpointError(path, "is not a manifest: its head is damaged", step=step)
    begin, end = marked.span(1)
    expected, found = marked[1].decode(), hash_bytes(data[:begin] + data[end:])
    if found != expected:
        problem = f"the manifest does not match its hash (expected {expected[:8]}, found {found[:8]})"
        raise DamagedCheckpointError(path, problem, step=step)
    return data


def _manifest(document: dict[str, Any]) -> Manifest:
    return Manifest(
        step=document["step"],
        save_id=document["save_id"],
        created_at=document["created_at"],
        world_size=document["world_size"],
        metrics={name: float(value) for name, value in document["metrics"].items()},
        values=document["values"],
        files={name: file_entry(entry) for name, entry in document["files"].items()},
        tensors={name: tensor_entry(entry) for name, entry in document["tensors"].items()},
    )


def file_json(entry: FileEntry) -> dict[str, Any]:
    """A shard's entry as JSON."""
    return {"size_bytes": entry.size_bytes, "header_hash": entry.header_hash}


def file_entry(entry: dict[str, Any]) -> FileEntry:
    """A shard's entry from its JSON."""
    return FileEntry(size_bytes=entry["size_bytes"], header_hash=entry["header_hash"])


def tensor_json(entry: TensorEntry) -> dict[str, Any]:
    """A tensor's entry as JSON (written out, because `asdict` takes ten times as long)."""
    chunks = [
        {"file": chunk.file, "key": chunk.key, "offsets": chunk.offsets, "shape": chunk.shape, "hash": chunk.hash}
        for chunk in entry.chunks
    ]
    return {"dtype": entry.dtype, "shape": entry.shape, "chunks": chunks}


def tensor_entry(entry: dict[str, Any]) -> TensorEntry:
    """A tensor's entry from its JSON."""
    chunks = tuple(
        ChunkEntry(
            file=chunk["file"],
            key=chunk["key"],
            offsets=tuple(chunk["offsets"]),
            shape=tuple(chunk["shape"]),
            hash=chunk["hash"],
        )
        for chunk in entry["chunks"]
    )
    return TensorEntry(dtype=entry["dtype"], shape=tuple(entry["shape"]), chunks=chunks)
