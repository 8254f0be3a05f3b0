"""Blocks: a chunk of a tensor is hashed in pieces of fixed size, so that many threads, or few bytes, can check it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import xxhash

BLOCK_BYTES: Final = 16 << 20
"""Large enough that a hash of 16 bytes is nothing beside it, small enough to spread one tensor over all cores."""


def block_count(size_bytes: int) -> int:
    """The number of blocks of a chunk; an empty one has none."""
    return -(-size_bytes // BLOCK_BYTES)


def block_range(size_bytes: int, index: int) -> tuple[int, int]:
    """Where block `index` of a chunk begins and ends, in bytes."""
    begin = index * BLOCK_BYTES
    return begin, min(begin + BLOCK_BYTES, size_bytes)


def iterate_blocks(data: memoryview) -> Iterator[memoryview]:
    """The blocks of a chunk's bytes."""
    for begin in range(0, len(data), BLOCK_BYTES):
        yield data[begin : begin + BLOCK_BYTES]


def block_hashes(data: memoryview) -> tuple[str, ...]:
    """XXH3-128 of each block of a chunk's bytes."""
    return tuple(xxhash.xxh3_128_hexdigest(block) for block in iterate_blocks(data))
