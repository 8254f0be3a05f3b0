"""Boxes: which part of a whole tensor a rank holds, and where two parts overlap. All resharding is this."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


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
    if tensor.device_mesh.get_coordinate() is None:
        return Box((0,) * len(shape), (0,) * len(shape))
    local_shape, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tuple(tensor.placements)
    )
    return Box(tuple(offsets), tuple(local_shape))


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
    """Whether each rank holds one box of the final values.

    A sum still to be taken over the ranks is none, nor is a strided shard (FSDP2 over tensor parallelism on the same
    dimension), whose rows may lie apart where the sizes do not divide.
    """
    return all(type(placement) in (Replicate, Shard) for placement in tensor.placements)


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
