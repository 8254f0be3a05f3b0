"""Blocks cover a chunk without gap or overlap, and each has the hash of its own bytes."""

from __future__ import annotations

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from production_ml.fault_tolerance.checkpoint_format.blocks import (
    BLOCK_BYTES,
    block_count,
    block_hashes,
    block_range,
    iterate_blocks,
)


@given(
    st.one_of(
        st.integers(0, 10 * BLOCK_BYTES), st.sampled_from([BLOCK_BYTES * n + d for n in (1, 2) for d in (-1, 0, 1)])
    )
)
def test_blocks_follow_on_each_other_and_end_with_the_chunk(size_bytes):
    ranges = [block_range(size_bytes, index) for index in range(block_count(size_bytes))]

    ends = [0, *(end for _, end in ranges)]
    assert [begin for begin, _ in ranges] == ends[:-1]
    assert ends[-1] == size_bytes
    assert all(0 < end - begin <= BLOCK_BYTES for begin, end in ranges)


def test_an_empty_chunk_has_no_blocks_and_no_hashes():
    assert block_count(0) == 0
    assert block_hashes(memoryview(b"")) == ()


def test_each_block_is_hashed_alone():
    data = memoryview(bytearray(BLOCK_BYTES + 3))
    data[-1] = 7

    assert [len(block) for block in iterate_blocks(data)] == [BLOCK_BYTES, 3]
    assert block_hashes(data) == (
        xxhash.xxh3_128_hexdigest(bytes(BLOCK_BYTES)),
        xxhash.xxh3_128_hexdigest(b"\0\0\7"),
    )
