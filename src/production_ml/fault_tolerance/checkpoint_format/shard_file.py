"""One rank's tensors in one safetensors file: written from memory that holds it already, verified as it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.blocks import block_count, block_range
from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource
from production_ml.fault_tolerance.checkpoint_format.element_types import size_bytes, stored_form
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry
from production_ml.fault_tolerance.checkpoint_format.shard_layout import HEADER_LENGTH
from production_ml.storage.hashing import hash_bytes

# Small enough to stay in the core's cache between reading and hashing, large enough to make system calls cheap.
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LocatedChunk:
    """A chunk, and where its bytes lie in the shard."""

    tensor: str
    begin: int
    size_bytes: int
    hashes: tuple[str, ...]


class ShardReader:
    """Reads blocks of one shard; each is verified before anyone sees it. Several threads may read at once.

    Args:
        source: The shard's bytes; closed with the reader.
        entry: What the manifest says of it.
        step: The checkpoint's step, for messages.

    Raises:
        DamagedCheckpointError: Its size or header is not what was written.
        CheckpointError: The system refuses to read it.
    """

    def __init__(self, source: ByteSource, entry: FileEntry, *, step: int) -> None:
        self._source = source
        self._step = step
        try:
            self._header, self._data_start = self._read_header(entry)
        except BaseException:
            source.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def locate(self, tensor: str, dtype: str, chunk: ChunkEntry) -> LocatedChunk:
        """Find a chunk by the shard's own header.

        Raises:
            DamagedCheckpointError: The header says something else than the manifest.
        """
        size = size_bytes(dtype, chunk.shape)
        begin = self._begin(chunk, stored_form(dtype, chunk.shape))
        if begin is None or len(chunk.hashes) != block_count(size):
            raise self._damage("is not described in the shard's header as the manifest says", tensor)
        return LocatedChunk(tensor, self._data_start + begin, size, chunk.hashes)

    def read_block(self, chunk: LocatedChunk, index: int, out: memoryview, *, is_checked: bool = True) -> None:
        """Read one block into `out`, which is as long as the block; worth nothing where this raises.

        Args:
            chunk: The chunk.
            index: Which of its blocks.
            out: Where to.
            is_checked: Whether its hash is compared.

        Raises:
            DamagedCheckpointError: The block is not what was written.
        """
        begin, end = block_range(chunk.size_bytes, index)
        digest = xxhash.xxh3_128()
        for offset in range(0, end - begin, _PIECE_BYTES):
            piece = out[offset : min(offset + _PIECE_BYTES, end - begin)]
            self._fill(chunk.begin + begin + offset, piece, chunk.tensor)
            if is_checked:
                digest.update(piece)
        if is_checked and (found := digest.hexdigest()) != chunk.hashes[index]:
            raise self._mismatch(chunk, index, found)

    def prefetch(self, chunk: LocatedChunk, index: int) -> None:
        """Block `index` will be read soon."""
        begin, end = block_range(chunk.size_bytes, index)
        self._source.prefetch(chunk.begin + begin, end - begin)

    def read_into(self, tensor: str, dtype: str, chunk: ChunkEntry, out: memoryview) -> None:
        """Read a whole chunk into `out`, which is as long as it.

        Raises:
            DamagedCheckpointError: The chunk is not what was written.
        """
        located = self.locate(tensor, dtype, chunk)
        for index in range(len(located.hashes)):
            begin, end = block_range(located.size_bytes, index)
            self.read_block(located, index, out[begin:end])

    def verify(self, tensor: str, dtype: str, chunk: ChunkEntry) -> None:
        """Read a whole chunk without keeping it.

        Raises:
            DamagedCheckpointError: The chunk is not what was written.
        """
        located = self.locate(tensor, dtype, chunk)
        for index in range(len(located.hashes)):
            self.verify_block(located, index)

    def verify_block(self, chunk: LocatedChunk, index: int) -> None:
        """Read one block without keeping it.

        Raises:
            DamagedCheckpointError: The block is not what was written.
        """
        begin, end = block_range(chunk.size_bytes, index)
        digest = xxhash.xxh3_128()
        scratch = memoryview(bytearray(min(_PIECE_BYTES, end - begin)))
        for offset in range(begin, end, _PIECE_BYTES):
            piece = scratch[: min(_PIECE_BYTES, end - offset)]
            self._fill(chunk.begin + offset, piece, chunk.tensor)
            digest.update(piece)
        if (found := digest.hexdigest()) != chunk.hashes[index]:
            raise self._mismatch(chunk, index, found)

    def _begin(self, chunk: ChunkEntry, expected: tuple[str, tuple[int, ...]]) -> int | None:
        """Where the chunk begins in the data; None where the header, which anyone can write, says something else."""
        try:
            described = self._header[chunk.key]
            begin = described["data_offsets"][0]
            is_expected = (described["dtype"], tuple(described["shape"])) == expected
        except (LookupError, TypeError):
            return None
        return begin if is_expected and type(begin) is int and begin >= 0 else None

    def _fill(self, position: int, piece: memoryview, tensor: str | None = None) -> None:
        if self._source.readinto(position, piece) != len(piece):
            raise self._damage("lies beyond the end of the file: the file is truncated", tensor)

    def _read_header(self, entry: FileEntry) -> tuple[Mapping[str, Any], int]:
        size = self._source.size_bytes
        if size != entry.size_bytes:
            what = "truncated" if size < entry.size_bytes else "too long"
            raise self._damage(f"the file is {what} ({size:,} bytes instead of {entry.size_bytes:,})")
        prefix = bytearray(HEADER_LENGTH.size)
        self._fill(0, memoryview(prefix))
        (length,) = HEADER_LENGTH.unpack(prefix)
        if length > size - len(prefix):
            raise self._damage("the file's header length is damaged")
        encoded = bytearray(length)
        self._fill(len(prefix), memoryview(encoded))
        if hash_bytes(bytes(prefix + encoded)) != entry.header_hash:
            raise self._damage("the file's header does not match its hash")
        try:
            header = json.loads(encoded)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise self._damage("the file's header is not a safetensors header")
        return header, len(prefix) + length

    def _mismatch(self, chunk: LocatedChunk, index: int, found: str) -> DamagedCheckpointError:
        begin, end = block_range(chunk.size_bytes, index)
        problem = f"does not match its hash (expected {chunk.hashes[index][:8]}, found {found[:8]})"
        if len(chunk.hashes) > 1:
            problem += f" in bytes {begin:,} to {end:,} of its chunk"
        return self._damage(problem, chunk.tensor)

    def _damage(self, problem: str, tensor: str | None = None) -> DamagedCheckpointError:
        return DamagedCheckpointError(self._source.name, problem, step=self._step, tensor=tensor)
