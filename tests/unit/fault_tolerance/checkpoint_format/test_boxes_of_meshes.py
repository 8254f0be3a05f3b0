"""Each rank of a mesh holds the box that it is said to hold, where FSDP2 and tensor parallelism cut unevenly too."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - makes the backend "fake" known

from production_ml.fault_tolerance.checkpoint_format.boxes import (
    Box,
    box_at,
    cutting_order,
    from_local,
    is_box_sharded,
    local_box,
)


@pytest.fixture
def mesh_of():
    """This process as one rank of a mesh; nothing is ever sent."""

    def make(rank: int, *shape: int) -> DeviceMesh:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=torch.Size(shape).numel())
        return init_device_mesh("cpu", shape, mesh_dim_names=("pods", "data", "tensor")[-len(shape) :])

    yield make
    dist.destroy_process_group()


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (4, 2), (2, 4), (3, 2)])
def test_fsdp2_over_tensor_parallelism_holds_the_rows_that_its_box_names(mesh_of, data, tensor):
    for rank, rows in itertools.product(range(data * tensor), (1, 2, 3, 5, 8, 9, 10)):
        mesh = mesh_of(rank, data, tensor)
        model = nn.Sequential(nn.Linear(1, rows))
        with torch.no_grad():
            model[0].bias.copy_(torch.arange(rows))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()}, src_data_rank=None)
        fully_shard(model, mesh=mesh["data"])
        bias = model[0].bias

        # Not local_box(): a process that becomes another rank finds its first place in torch's cache of meshes.
        box = box_at(bias.shape, bias.placements, (data, tensor), mesh.get_coordinate())

        assert bias.to_local().tolist() == list(range(box.offsets[0], box.offsets[0] + box.shape[0])), (rank, rows)


def test_a_strided_shard_goes_out_as_a_box_and_comes_back(mesh_of):
    mesh = mesh_of(0, 4, 2)
    model = nn.Sequential(nn.Linear(1, 9))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()}, src_data_rank=None)
    fully_shard(model, mesh=mesh["data"])

    assert is_box_sharded(model[0].bias)
    assert local_box(model[0].bias) == Box((0,), (2,))
    again = from_local(torch.tensor([1.0, 2.0]), model[0].bias)
    assert (again.placements, again.to_local().tolist()) == (model[0].bias.placements, [1.0, 2.0])


@pytest.mark.parametrize("mesh_shape", [(2, 2), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("shape", [(7, 5), (4, 6), (1, 3), (0, 2)])
def test_the_boxes_of_all_ranks_cover_a_tensor_once(mesh_shape, shape):
    kinds = [Replicate(), Shard(0), Shard(1)]
    for placements in itertools.product(kinds, repeat=len(mesh_shape)):
        seen = torch.zeros(shape)
        for coordinate in itertools.product(*map(range, mesh_shape)):
            if all(at == 0 for at, kind in zip(coordinate, placements, strict=True) if kind == Replicate()):
                seen[box_at(shape, placements, mesh_shape, coordinate).slices_within(Box((0, 0), shape))] += 1

        assert (seen == 1).all(), placements


def test_a_strided_shard_cuts_after_those_it_strides_over():
    assert cutting_order([Shard(0), Shard(1)], (2, 2)) == [0, 1]
    assert cutting_order([_StridedShard(0, split_factor=2), Shard(0)], (3, 2)) == [1, 0]
    assert cutting_order([Replicate(), _StridedShard(0, split_factor=2), Shard(0)], (2, 3, 2)) == [2, 1]
    assert cutting_order([_StridedShard(0, split_factor=6), Shard(0), Shard(0)], (2, 3, 2)) == [1, 2, 0]
    assert cutting_order([_StridedShard(0, split_factor=2), Shard(1), Shard(0)], (2, 3, 2)) == [1, 2, 0]
    assert cutting_order([_StridedShard(0, split_factor=2), Shard(0), Shard(0)], (2, 2, 3)) == [1, 0, 2]


@pytest.mark.parametrize("split_factor", [3, 4])
def test_a_strided_shard_that_no_mesh_explains_is_none(mesh_of, split_factor):
    mesh = mesh_of(0, 2, 2)
    placements = [_StridedShard(0, split_factor=split_factor), Shard(0)]

    odd = DTensor.from_local(torch.ones(2), mesh, placements, run_check=False, shape=(8,), stride=(1,))

    assert not is_box_sharded(odd)


def test_sums_still_to_be_taken_and_pieces_of_other_sizes_are_no_boxes(mesh_of):
    mesh = mesh_of(0, 2)

    assert not is_box_sharded(DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False))
    by_hand = DTensor.from_local(torch.ones(1), mesh, [Shard(0)], run_check=False, shape=(8,), stride=(1,))
    assert not is_box_sharded(by_hand)
