"""Boxes: which part of a whole tensor a rank holds, and where two parts overlap. All resharding is this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard


@dataclass(frozen=True, slots=True)
class Box:
    """`offsets[d] ≤ index < offsets[d] + shape[d]` in every dimension d."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    def slices_within(self, outer: Box) -> tuple[slice, ...]:
        """Index of this box in a tensor that holds `outer`."""
        return tuple(
            slice(mine - base, mine - base + size)
            for mine, base, size in zip(self.offsets, outer.offsets, self.shape, strict=True)
        )


def whole(shape: tuple[int, ...]) -> Box:
    """The box of a whole tensor."""
    return Box((0,) * len(shape), shape)


def intersection(one: Box, other: Box) -> Box | None:
    """Where two boxes overlap; None where they do not."""
    begin = tuple(map(max, one.offsets, other.offsets))
    end = tuple(
        min(a + size_a, b + size_b)
        for a, size_a, b, size_b in zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    )
    if any(stop <= start for start, stop in zip(begin, end, strict=True)):
        return None
    return Box(begin, tuple(stop - start for start, stop in zip(begin, end, strict=True)))


def local_box(tensor: torch.Tensor) -> Box:
    """The part of the whole that this rank holds: all of a plain tensor, one box of a sharded one."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return whole(shape)
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return Box((0,) * len(shape), (0,) * len(shape))
    return box_at(shape, tensor.placements, tensor.device_mesh.shape, coordinate)


def box_at(
    shape: Sequence[int], placements: Sequence[Placement], mesh_shape: Sequence[int], coordinate: Sequence[int]
) -> Box:
    """The box of a tensor of `shape` that stands at a place in a mesh.

    `Shard` is torch.chunk: equal pieces, rounded up, until nothing is left. torch's own
    `compute_local_shape_and_global_offset` is not used because it reads strided shards by their definition, and FSDP2
    over tensor parallelism cuts otherwise where sizes do not divide: 9 rows over 4 x 2 ranks give the last row to a
    rank that does not have it.

    Raises:
        ValueError: A strided shard is none that FSDP2 makes.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dimension in cutting_order(placements, mesh_shape):
        dimension = placements[mesh_dimension].dim  # type: ignore[attr-defined]
        piece = -(-sizes[dimension] // mesh_shape[mesh_dimension])
        begin = min(sizes[dimension], coordinate[mesh_dimension] * piece)
        offsets[dimension] += begin
        sizes[dimension] = min(piece, sizes[dimension] - begin)
    return Box(tuple(offsets), tuple(sizes))


def cutting_order(placements: Sequence[Placement], mesh_shape: Sequence[int]) -> list[int]:
    """The mesh dimensions that cut a tensor, in the order in which they did.

    A strided shard cuts what the mesh dimensions after it, as many as make up its split factor, have already cut: FSDP2
    shards the rows that tensor parallelism left to a rank. So each rank holds one box.

    Raises:
        ValueError: A split factor is not made up so.
    """
    order: list[int] = []
    for mesh_dimension in reversed(range(len(placements))):
        placement = placements[mesh_dimension]
        if isinstance(placement, _StridedShard):
            order.insert(_place_of(placement, order, placements, mesh_shape), mesh_dimension)
        elif isinstance(placement, Shard):
            order.insert(0, mesh_dimension)
    return order


def _place_of(
    strided: _StridedShard, order: Sequence[int], placements: Sequence[Placement], mesh_shape: Sequence[int]
) -> int:
    """The place in `order` behind the cuts that make up the split factor."""
    pieces = 1
    for place, mesh_dimension in enumerate(order):
        if pieces == strided.split_factor:
            return place
        if placements[mesh_dimension].dim == strided.dim:  # type: ignore[attr-defined]
            pieces *= mesh_shape[mesh_dimension]
    if pieces != strided.split_factor:
        raise ValueError(f"{strided} does not follow from a mesh of {tuple(mesh_shape)}")
    return len(order)


def local_data(tensor: torch.Tensor) -> torch.Tensor:
    """The elements this rank holds; for a sharded tensor a view of its local part, detached."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def from_local(local: torch.Tensor, like: DTensor) -> DTensor:
    """A sharded tensor with the placement of `like`, of which this rank holds `local`. Ranks exchange nothing."""
    moved = local.to(like.to_local().device)
    return DTensor.from_local(
        moved, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def is_box_sharded(tensor: DTensor) -> bool:
    """Whether each rank holds one box of the final values: a sum still to be taken over the ranks is none."""
    if not all(type(placement) in (Replicate, Shard, _StridedShard) for placement in tensor.placements):
        return False
    try:
        box = local_box(tensor)
    except ValueError:
        return False
    # A tensor that was put together by hand may be cut in other places than torch cuts.
    return tensor.device_mesh.get_coordinate() is None or box.shape == tuple(tensor._local_tensor.shape)


def is_first_replica(tensor: DTensor) -> bool:
    """Whether this rank is the one, of all that hold the same box, that writes it."""
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    return all(
        position == 0
        for position, placement in zip(coordinate, tensor.placements, strict=True)
        if isinstance(placement, Replicate)
    )
