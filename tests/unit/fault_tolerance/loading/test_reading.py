"""Any box comes out of any chunks, and what one rank does not read another verifies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_file import write_shard
from production_ml.fault_tolerance.loading.reading import read_boxes
from production_ml.fault_tolerance.saving.parts import describe_part, merge_parts, shard_name
from production_ml.fault_tolerance.saving.shard_plan import Holding


def write_rows(path, tensor: torch.Tensor, cuts: list[int]) -> Manifest:
    """A checkpoint in which each rank wrote the rows between two cuts, and a value of its own."""
    parts = []
    for rank, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(tensor)], strict=True)):
        rows = tensor[begin:end].contiguous()
        own = Holding(f"own{rank}", f"own{rank}", "F32", (1,), whole((1,)))
        held = Holding("x", "x", "F32", tuple(tensor.shape), Box((begin, 0), tuple(rows.shape)))
        file, hashes = write_shard(path / shard_name(rank), {"x": rows, own.name: torch.ones(1)})
        parts.append(describe_part(rank, [held, own], file, hashes))
    merged = merge_parts(parts)
    return Manifest(
        step=1,
        save_id="a",
        created_at=0.0,
        world_size=len(parts),
        metrics={},
        values={},
        files=merged.files,
        tensors=merged.tensors,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3).map(sorted), st.integers(0, 7), st.integers(0, 7), st.integers(0, 3))
def test_rows_that_were_cut_one_way_are_read_another_way(tmp_path_factory, cuts, one, other, column):
    path = tmp_path_factory.mktemp("checkpoint")
    tensor = torch.arange(21.0).reshape(7, 3)
    manifest = write_rows(path, tensor, cuts)
    begin, end = min(one, other), max(one, other)

    box = Box((begin, column), (end - begin, 3 - column))
    found = read_boxes(path, manifest, {"x": box}, rank=0, world_size=1)

    assert torch.equal(found["x"], tensor[begin:end, column:])


def test_a_tensor_without_elements_needs_no_file(tmp_path):
    manifest = write_rows(tmp_path, torch.empty(0, 3), [0])

    assert read_boxes(tmp_path, manifest, {"x": whole((0, 3))}, rank=0, world_size=1)["x"].shape == (0, 3)


def test_damage_in_what_no_rank_loads_is_found_by_exactly_one_rank(tmp_path):
    manifest = write_rows(tmp_path, torch.ones(4, 2), [2])
    shard = tmp_path / shard_name(1)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)

    assert read_boxes(tmp_path, manifest, {}, rank=0, world_size=2) == {}
    with pytest.raises(DamagedCheckpointError, match="'own1'"):
        read_boxes(tmp_path, manifest, {}, rank=1, world_size=2)
    with pytest.raises(DamagedCheckpointError, match="'own1'"):
        read_boxes(tmp_path, manifest, {}, rank=0, world_size=1)
