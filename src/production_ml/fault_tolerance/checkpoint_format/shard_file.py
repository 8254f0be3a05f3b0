"""One rank's tensors in one safetensors file, hashed as they are written and as they are read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
import xxhash

from production_ml.core.errors import CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import DTYPE_BYTES, ChunkEntry

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
_HEADER_LIMIT_BYTES: Final = 100 << 20


def dtype_name(name: str, tensor: torch.Tensor) -> str:
    """safetensors' name for a tensor's element type.

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


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Write contiguous CPU `tensors` and fsync.

    Returns:
        XXH3-128 of each tensor's bytes, by name.
    """
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype_name(name, tensor), "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    hashes: dict[str, str] = {}
    with path.open("wb", buffering=0) as file:
        _write_all(file, _HEADER_LENGTH.pack(len(encoded)) + encoded)
        for name, tensor in tensors.items():
            data = as_bytes(tensor)
            hashes[name] = xxhash.xxh3_128_hexdigest(data)
            _write_all(file, data)
        os.fsync(file.fileno())
    return hashes


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _write_all(file: Any, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class ShardReader:
    """Reads chunks of one shard; each is verified before anyone sees it."""

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        self._step = step
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)  # type: ignore[assignment]
        except FileNotFoundError:
            raise DamagedCheckpointError(path, "the shard is missing", step=step) from None
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self._header, self._data_start = self._read_header()
        except DamagedCheckpointError:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str, dtype: str, chunk: ChunkEntry) -> torch.Tensor:
        """The chunk as a CPU tensor of `chunk.shape`.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        tensor = torch.empty(chunk.shape, dtype=DTYPES[dtype])
        begin = self._locate(name, dtype, chunk)
        data = as_bytes(tensor)
        self._file.seek(begin)
        filled = 0
        while filled < len(data):
            count = self._file.readinto(data[filled:])  # type: ignore[attr-defined]
            if not count:
                raise self._damage("ends before the tensor does", name)
            filled += count
        found = xxhash.xxh3_128_hexdigest(data)
        if found != chunk.hash:
            raise self._damage(f"does not match its hash (expected {chunk.hash[:8]}, found {found[:8]})", name)
        return tensor

    def _locate(self, name: str, dtype: str, chunk: ChunkEntry) -> int:
        described = self._header.get(chunk.key)
        try:
            matches = described is not None and (described["dtype"], tuple(described["shape"])) == (dtype, chunk.shape)
            begin, end = described["data_offsets"] if matches else (0, 0)
            size = torch.Size(chunk.shape).numel() * DTYPE_BYTES[dtype]
            fits = 0 <= begin and end - begin == size and self._data_start + end <= self._size
        except (KeyError, TypeError, ValueError):
            matches = fits = False
        if not matches:
            raise self._damage("is not described in the shard's header as the manifest says", name)
        if not fits:
            raise self._damage(f"lies beyond the end of the file ({self._size} bytes): the file is truncated", name)
        return self._data_start + int(begin)

    def _read_header(self) -> tuple[dict[str, Any], int]:
        prefix = self._file.read(_HEADER_LENGTH.size)
        if len(prefix) < _HEADER_LENGTH.size:
            raise self._damage("is too short to be a shard")
        (length,) = _HEADER_LENGTH.unpack(prefix)
        if length > min(_HEADER_LIMIT_BYTES, self._size):
            raise self._damage("has a damaged header length")
        try:
            header = json.loads(self._file.read(length))
        except ValueError as problem:
            raise self._damage(f"has a damaged header ({problem})") from None
        if not isinstance(header, dict):
            raise self._damage("has a damaged header")
        return header, _HEADER_LENGTH.size + length

    def _damage(self, problem: str, tensor: str | None = None) -> DamagedCheckpointError:
        return DamagedCheckpointError(self._path, problem, step=self._step, tensor=tensor)
