"""The manifest: what a checkpoint holds, where, and the hash of each piece. When it is durable, the checkpoint exists."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import DamagedCheckpointError
from production_ml.storage.hashing import hash_bytes

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "production_ml.checkpoint"
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkEntry:
    """A box of a tensor, as one rank wrote it."""

    file: str
    key: str
    """Its name in the safetensors file."""
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
    created_at: float
    """Wall seconds."""
    world_size: int
    metrics: Mapping[str, float]
    values: Any
    """The state that is not tensors, as `state_tree` encodes it."""
    tensors: Mapping[str, TensorEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(math.prod(entry.shape) * DTYPE_BYTES[entry.dtype] for entry in self.tensors.values())


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
    """JSON, with the hash of its own body beside it: a manifest is verified like any tensor."""
    body = json.dumps(asdict(manifest), sort_keys=True)
    head = {"format": FORMAT, "version": VERSION, "hash": hash_bytes(body.encode())}
    return f'{json.dumps(head)[:-1]}, "body": {body}}}\n'.encode()


def read_manifest(path: Path, *, step: int) -> Manifest:
    """Read and verify the manifest of `step`.

    Raises:
        DamagedCheckpointError: It is missing, is not what was written, or belongs to another step.
    """
    try:
        document = json.loads(path.read_bytes())
        body = document["body"]
        found = hash_bytes(json.dumps(body, sort_keys=True).encode())
        expected = document["hash"]
        version = document["version"]
    except FileNotFoundError:
        raise DamagedCheckpointError(path, "the manifest is missing", step=step) from None
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DamagedCheckpointError(path, f"the manifest cannot be read ({problem!r})", step=step) from None
    if found != expected:
        raise DamagedCheckpointError(
            path, f"the manifest does not match its hash (expected {str(expected)[:8]}, found {found[:8]})", step=step
        )
    if document.get("format") != FORMAT or version != VERSION:
        raise DamagedCheckpointError(
            path, f"has the format version {version!r}; this library reads {VERSION}", step=step
        )
    manifest = _manifest(body)
    if manifest.step != step:
        raise DamagedCheckpointError(path, f"is the manifest of step {manifest.step}", step=step)
    return manifest


def _manifest(body: dict[str, Any]) -> Manifest:
    tensors = {name: tensor_entry(entry) for name, entry in body.pop("tensors").items()}
    return Manifest(tensors=tensors, **body)


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
