"""What a rank tells arrives as it was told, and parts make up whole tensors or no checkpoint."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry
from production_ml.fault_tolerance.saving.order import Holding
from production_ml.fault_tolerance.saving.parts import (
    Part,
    decode_part,
    describe_part,
    encode_failure,
    encode_part,
    merge_parts,
)

FILE = FileEntry(size_bytes=8, header_hash="aa")


def part(rank: int, *, begin: int, size: int, total: int = 4, dtype: str = "F32") -> Part:
    held = Holding("x", "x", dtype, (total, 2), (begin, 0), (size, 2))
    return describe_part(f"rank-{rank:05d}.safetensors", [held], FILE, {"x": ("bb", "cc")})


def test_a_part_comes_back_as_it_was_told():
    told = replace(part(3, begin=1, size=2), rank_values=({"seed": 1},))

    assert decode_part(3, encode_part(told)) == told


@pytest.mark.parametrize("number", [errno.ENOSPC, None])
def test_a_rank_that_failed_says_why(number):
    told = encode_failure("No space left on device", errno=number)

    with pytest.raises(CheckpointWriteError, match="Rank 3 could not write its shard: No space left") as raised:
        decode_part(3, told)

    assert raised.value.errno == number
    assert "newest committed checkpoint is unchanged" in raised.value.meaning


def test_parts_of_a_tensor_become_one_entry():
    whole = merge_parts([part(0, begin=0, size=3), part(1, begin=3, size=1)])

    assert [chunk.offsets for chunk in whole.tensors["x"].chunks] == [(0, 0), (3, 0)]
    assert set(whole.files) == {"rank-00000.safetensors", "rank-00001.safetensors"}


def test_state_that_differs_by_rank_is_there_for_all_ranks_or_for_none():
    own = [replace(part(rank, begin=2 * rank, size=2), rank_values=({"seed": rank},)) for rank in range(2)]

    assert merge_parts(own).rank_values == ({"seed": 0}, {"seed": 1})
    assert merge_parts([own[0], replace(own[1], rank_values=())]).rank_values == ()


def test_a_tensor_with_a_hole_is_never_committed():
    with pytest.raises(CheckpointWriteError, match="'x' is not whole"):
        merge_parts([part(0, begin=0, size=3)])


@pytest.mark.parametrize("other", [{"total": 5}, {"dtype": "F64"}])
def test_ranks_that_mean_different_tensors_are_not_merged(other):
    with pytest.raises(CheckpointWriteError, match="other shapes or types"):
        merge_parts([part(0, begin=0, size=3), part(1, begin=3, size=1, **other)])
