"""One rank's tensors in one safetensors file, hashed as they are written and as they are read."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import xxhash

from production_ml.core.errors import CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import DTYPE_BYTES, ChunkEntry, FileEntry, unreadable
from production_ml.storage.hashing import hash_bytes

DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEADER_LENGTH: Final = struct.Struct("<Q")
# Small enough to stay in the core's cache between hashing and writing, large enough to make system calls cheap.
_PIECE_BYTES: Final = 1 << 20


def dtype_name(name: str, tensor: torch.Tensor) -> str:
    """The safetensors name for a tensor's element type.

    Raises:
        CheckpointWriteError: safetensors has none, or the tensor is sparse.
    """
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
        raise CheckpointWriteError(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) cannot be saved: safetensors holds dense tensors of "
            f"{', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in DTYPE_NAMES))}.",
            cure="Convert it first, or keep it out of the checkpoint.",
        )
    return DTYPE_NAMES[tensor.dtype]


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[FileEntry, dict[str, str]]:
    """Write contiguous CPU `tensors` and fsync.

    They are written in the order given; give large elements first, and every tensor is aligned to its elements.

    Returns:
        What a reader needs to verify the file, and XXH3-128 of each tensor's bytes, by name.

    Raises:
        OSError: The file system does not take it.
    """
    head, data_bytes = _header(tensors)
    hashes: dict[str, str] = {}
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(head))
        for name, tensor in tensors.items():
            hashes[name] = _write_hashed(file, as_bytes(tensor))
        os.fsync(file.fileno())
    return FileEntry(size_bytes=len(head) + data_bytes, header_hash=hash_bytes(head)), hashes


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, int]:
    described: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        offsets = [position, end]
        described[name] = {"dtype": dtype_name(name, tensor), "shape": list(tensor.shape), "data_offsets": offsets}
        position = end
    encoded = json.dumps(described).encode()
    encoded += b" " * (-len(encoded) % 8)
    return _HEADER_LENGTH.pack(len(encoded)) + encoded, position


def _write_hashed(file: io.FileIO, data: memoryview) -> str:
    digest = xxhash.xxh3_128()
    for begin in range(0, len(data), _PIECE_BYTES):
        piece = data[begin : begin + _PIECE_BYTES]
        digest.update(piece)
        _write_all(file, piece)
    return str(digest.hexdigest())


def _write_all(file: io.FileIO, rest: memoryview) -> None:
    while rest:
        rest = rest[file.write(rest) :]


class ShardReader:
    """Reads chunks of one shard; each is verified before anyone sees it. Close it, or use it in a `with`.

    Args:
        path: The shard.
        entry: What the manifest says of it.
        step: The checkpoint's step, for messages.

    Raises:
        DamagedCheckpointError: The file is missing, or its size or header is not what was written.
        CheckpointError: The system refuses to read it.
    """

    def __init__(self, path: Path, entry: FileEntry, *, step: int) -> None:
        self._path = path
        self._step = step
        try:
            self._file = io.FileIO(path, "rb")
        except OSError as problem:
            raise unreadable(path, problem, step=step) from problem
        try:
            self._header, self._data_start = self._read_header(entry)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str, dtype: str, chunk: ChunkEntry) -> torch.Tensor:
        """The chunk as a new CPU tensor of `chunk.shape`.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        tensor = torch.empty(chunk.shape, dtype=DTYPES[dtype])
        self.read_into(name, dtype, chunk, tensor)
        return tensor

    def read_into(self, name: str, dtype: str, chunk: ChunkEntry, out: torch.Tensor) -> None:
        """Read the chunk into a contiguous CPU tensor; its content is worth nothing where this raises.

        Raises:
            DamagedCheckpointError: The chunk is not what was written.
        """
        data = as_bytes(out)
        pieces = (data[begin : begin + _PIECE_BYTES] for begin in range(0, len(data), _PIECE_BYTES))
        self._read_verified(name, dtype, chunk, pieces)

    def verify(self, name: str, dtype: str, chunk: ChunkEntry) -> None:
        """Read the chunk without keeping it.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        size = torch.Size(chunk.shape).numel() * DTYPE_BYTES[dtype]
        scratch = memoryview(bytearray(min(size, _PIECE_BYTES)))
        pieces = (scratch[: min(_PIECE_BYTES, size - begin)] for begin in range(0, size, _PIECE_BYTES))
        self._read_verified(name, dtype, chunk, pieces)

    def _read_verified(self, name: str, dtype: str, chunk: ChunkEntry, pieces: Iterator[memoryview]) -> None:
        self._file.seek(self._locate(name, dtype, chunk))
        digest = xxhash.xxh3_128()
        for piece in pieces:
            self._fill(piece, name)
            digest.update(piece)
        found = digest.hexdigest()
        if found != chunk.hash:
            raise self._damage(f"does not match its hash (expected {chunk.hash[:8]}, found {found[:8]})", name)

    def _fill(self, piece: memoryview, name: str | None = None) -> None:
        try:
            while piece:
                count = self._file.readinto(piece)
                if not count:
                    raise self._damage("lies beyond the end of the file: the file is truncated", name)
                piece = piece[count:]
        except OSError as problem:
            raise unreadable(self._path, problem, step=self._step) from problem

    def _locate(self, name: str, dtype: str, chunk: ChunkEntry) -> int:
        described = self._header.get(chunk.key)
        if described is None or (described["dtype"], tuple(described["shape"])) != (dtype, chunk.shape):
            raise self._damage("is not described in the shard's header as the manifest says", name)
        return self._data_start + int(described["data_offsets"][0])

    def _read_header(self, entry: FileEntry) -> tuple[dict[str, Any], int]:
        size = os.fstat(self._file.fileno()).st_size
        if size != entry.size_bytes:
            what = "truncated" if size < entry.size_bytes else "too long"
            raise self._damage(f"the file is {what} ({size:,} bytes instead of {entry.size_bytes:,})")
        prefix = bytearray(_HEADER_LENGTH.size)
        self._fill(memoryview(prefix))
        (length,) = _HEADER_LENGTH.unpack(prefix)
        if length > size - len(prefix):
            raise self._damage("the file's header length is damaged")
        encoded = bytearray(length)
        self._fill(memoryview(encoded))
        if hash_bytes(bytes(prefix + encoded)) != entry.header_hash:
            raise self._damage("the file's header does not match its hash")
        header: dict[str, Any] = json.loads(encoded)
        return header, len(prefix) + length

    def _damage(self, problem: str, tensor: str | None = None) -> DamagedCheckpointError:
        return DamagedCheckpointError(self._path, problem, step=self._step, tensor=tensor)
