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
from production_ml.fault_tolerance.checkpoint_format.manifest_checks import (
    check_files,
    check_head,
    check_tensors,
    check_values,
    check_whole,
    understanding,
)
from production_ml.fault_tolerance.checkpoint_format.regular_file import open_regular
from production_ml.storage.hashing import hash_bytes

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "production_ml.checkpoint"
VERSION: Final = 2
_NO_HASH: Final = b'"hash": ""'
_HASH: Final = re.compile(rb'"hash": "([0-9a-f]{32})"')
_SAVE_ID: Final = re.compile(rb'"save_id": "([0-9a-f]+)"')
_STEP: Final = re.compile(rb'"step": (\d+)')
HEAD_BYTES: Final = 256
"""So many bytes from the begin of a manifest hold its hash, the id of its save and its step."""
_VALUES: Final = b', "values": '
_GONE_OR_BROKEN: Final = {errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.EUCLEAN}


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
    hashes: tuple[str, ...]
    """XXH3-128 of each block of its bytes (see `blocks`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A whole tensor, which its chunks cover without overlap."""

    dtype: str
    """As safetensors names it: `F32`, `BF16`, …"""
    shape: tuple[int, ...]
    chunks: tuple[ChunkEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestSummary:
    """What a manifest says of a checkpoint as a whole."""

    step: int
    save_id: str
    created_at: float
    """Wall seconds."""
    world_size: int
    metrics: Mapping[str, float]
    files: Mapping[str, FileEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(file.size_bytes for file in self.files.values())


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
        "rank_values": manifest.rank_values,
        "tensors": {name: tensor_json(entry) for name, entry in manifest.tensors.items()},
    }
    data = json.dumps(document, allow_nan=False).encode() + b"\n"
    return data.replace(_NO_HASH, b'"hash": "%s"' % hash_bytes(data).encode(), 1)


def read_manifest(path: Path, *, step: int) -> Manifest:
    """Read and verify the manifest of `step`; see `decode_manifest`."""
    return decode_manifest(_read(path, step), str(path), step=step)


def read_summary(path: Path, *, step: int) -> ManifestSummary:
    """Read and verify the manifest of `step`, but understand only what it says of the checkpoint as a whole."""
    return decode_summary(_read(path, step), str(path), step=step)


def decode_manifest(data: bytes, name: str, *, step: int) -> Manifest:
    """The manifest of `step` that `data` holds.

    Args:
        data: All bytes of the file.
        name: Its path or URL, for messages.
        step: The step whose manifest it should be.

    Raises:
        DamagedCheckpointError: It is not what was written, or belongs to another step.
        CheckpointMismatchError: It is sound, but of a format that this release does not read.
    """
    _verified(data, name, step)
    with understanding(name, "the manifest", step=step):
        document = json.loads(data)
        _check(document, name, step)
        return _manifest(document)


def decode_summary(data: bytes, name: str, *, step: int) -> ManifestSummary:
    """As `decode_manifest`, but without the thousands of tensors, which take a hundred times as long to parse.

    Raises:
        DamagedCheckpointError: It is not what was written, or belongs to another step.
        CheckpointMismatchError: It is sound, but of a format that this release does not read.
    """
    _verified(data, name, step)
    with understanding(name, "the manifest", step=step):
        document = _head_of(data)
        _check(document, name, step)
        return _summary(document)


def _read(path: Path, step: int) -> bytes:
    try:
        with open(open_regular(path), "rb") as file:
            return file.read()
    except OSError as problem:
        raise unreadable(path, problem, step=step) from problem


def _check(document: dict[str, Any], name: str, step: int) -> None:
    if document["version"] != VERSION:
        raise CheckpointMismatchError(
            f"{name}: has the format version {document['version']}; this release reads {VERSION}.",
            meaning="Nothing was loaded, and the checkpoint is left as it is.",
            cure="Load it with the release of production_ml that wrote it, or a newer one.",
        )
    if document["step"] != step:
        raise DamagedCheckpointError(name, f"is the manifest of step {document['step']}", step=step)


def read_save_id(path: Path) -> str | None:
    """The id of the save that wrote the manifest at `path`, by a look at its head; None where there is none."""
    try:
        with open(open_regular(path), "rb") as file:
            return save_id_in(file.read(HEAD_BYTES))
    except OSError:
        return None


def save_id_in(head: bytes | None) -> str | None:
    """The id of the save that wrote the manifest that begins so; None where it is not to be found, or none is given."""
    found = _SAVE_ID.search(head or b"")
    return found[1].decode() if found else None


def read_step(path: Path) -> int | None:
    """The step that the manifest at `path` is of, by a look at its head; None where there is none."""
    try:
        with open(open_regular(path), "rb") as file:
            found = _STEP.search(file.read(HEAD_BYTES))
    except OSError:
        return None
    return int(found[1]) if found else None


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


def _verified(data: bytes, name: str, step: int) -> None:
    """Refuse `data` that does not hold the hash of all its other bytes.

    The hash is taken over the raw bytes: parsed JSON would let a flipped bit pass where the meaning is the same
    (1e-05 and 1E-05 differ in one).
    """
    marked = _HASH.search(data, 0, HEAD_BYTES)
    if marked is None:
        raise DamagedCheckpointError(name, "is not a manifest: its head is damaged", step=step)
    begin, end = marked.span(1)
    expected, found = marked[1].decode(), hash_bytes(data[:begin] + data[end:])
    if found != expected:
        problem = f"the manifest does not match its hash (expected {expected[:8]}, found {found[:8]})"
        raise DamagedCheckpointError(name, problem, step=step)


def _head_of(data: bytes) -> Any:
    """The document up to its values."""
    try:
        # Within a string the quotes would be escaped; a metric of that name makes what is cut off no JSON.
        return json.loads(data[: data.index(_VALUES)] + b"}")
    except ValueError:
        return json.loads(data)


def _summary(document: dict[str, Any]) -> ManifestSummary:
    found = ManifestSummary(
        step=document["step"],
        save_id=document["save_id"],
        created_at=document["created_at"],
        world_size=document["world_size"],
        metrics=_metrics(document),
        files={name: file_entry(entry) for name, entry in document["files"].items()},
    )
    check_head(found.step, found.save_id, found.created_at, found.world_size)
    check_files(found.files)
    return found


def _metrics(document: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in document["metrics"].items()}


def _manifest(document: dict[str, Any]) -> Manifest:
    head = _summary(document)
    tensors = {name: tensor_entry(entry) for name, entry in document["tensors"].items()}
    check_tensors(tensors, head.files)
    check_whole(tensors)
    check_values(document["values"], document["rank_values"], tensors, world_size=head.world_size)
    return Manifest(
        step=head.step,
        save_id=head.save_id,
        created_at=head.created_at,
        world_size=head.world_size,
        metrics=head.metrics,
        values=document["values"],
        rank_values=tuple(document["rank_values"]),
        files=head.files,
        tensors=tensors,
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
        {"file": chunk.file, "key": chunk.key, "offsets": chunk.offsets, "shape": chunk.shape, "hashes": chunk.hashes}
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
            hashes=tuple(chunk["hashes"]),
        )
        for chunk in entry["chunks"]
    )
    return TensorEntry(dtype=entry["dtype"], shape=tuple(entry["shape"]), chunks=chunks)
