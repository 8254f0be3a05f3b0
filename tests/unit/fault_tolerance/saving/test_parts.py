"""Ranks tell each other by files: a part is there whole or not at all, and parts make up whole tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry
from production_ml.fault_tolerance.saving.order import Holding
from production_ml.fault_tolerance.saving.parts import (
    Part,
    describe_part,
    merge_parts,
    read_parts,
    write_failure,
    write_part,
)

FILE = FileEntry(size_bytes=8, header_hash="aa")


def part(rank: int, *, begin: int, size: int, total: int = 4, dtype: str = "F32") -> Part:
    held = Holding("x", "x", dtype, (total, 2), (begin, 0), (size, 2))
    return describe_part(rank, [held], FILE, {"x": ("bb", "cc")})


def test_a_part_comes_back_as_it_was_written(tmp_path):
    written = replace(part(3, begin=1, size=2), rank_values=({"seed": 1},))
    write_part(tmp_path, 3, written)

    assert read_parts(tmp_path, [3, 4]) == {3: written}


def test_a_part_is_not_asked_for_by_name_before_it_is_listed(tmp_path, touched):
    """An NFS client remembers for half a minute and more that a name was not there."""
    with touched(tmp_path) as paths:
        assert read_parts(tmp_path, [1]) == {}
    assert paths == {tmp_path}

    write_part(tmp_path, 1, part(1, begin=0, size=4))
    with touched(tmp_path) as paths:
        read_parts(tmp_path, [1])
    assert paths == {tmp_path, tmp_path / "rank-00001.part.json"}


def test_a_rank_that_failed_says_why(tmp_path):
    write_failure(tmp_path, 3, "No space left on device")

    with pytest.raises(CheckpointWriteError, match="Rank 3 could not write its shard: No space left"):
        read_parts(tmp_path, [2, 3])


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
