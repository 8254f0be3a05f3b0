"""Who writes what: each box of each tensor once, by one rank, and tied tensors once under all their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.boxes import (
    Box,
    is_box_sharded,
    is_first_replica,
    local_box,
    local_data,
)
from production_ml.fault_tolerance.checkpoint_format.shard_file import dtype_name
from production_ml.storage.hashing import hash_bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """A tensor's box that this rank writes."""

    name: str
    key: str
    """The name under which the bytes are in the shard: that of the first tensor that shares this memory."""
    dtype: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    box: Box


@dataclass(slots=True)
class ShardPlan:
    """What this rank writes."""

    holdings: list[Holding]
    data: dict[str, torch.Tensor]
    """By key; still the training's own memory, on any device and in any stride."""


def plan_shard(tensors: Mapping[str, torch.Tensor], *, rank: int) -> ShardPlan:
    """Choose this rank's boxes. Plain tensors are the same on all ranks, and rank 0's are the ones that count.

    Raises:
        CheckpointWriteError: A tensor cannot be saved; the message names it.
    """
    plan = ShardPlan([], {})
    keys: dict[Any, str] = {}
    for name, tensor in tensors.items():
        dtype = _check_writable(name, tensor)
        if not _is_mine(tensor, rank):
            continue
        box, data = local_box(tensor), local_data(tensor)
        key = name
        if data.numel():
            memory = (
                data.data_ptr(),
                data.device,
                data.dtype,
                data.shape,
                data.stride(),
                data.is_conj(),
                data.is_neg(),
            )
            key = keys.setdefault(memory, name)
        plan.holdings.append(Holding(name, key, dtype, tuple(tensor.shape), box))
        plan.data.setdefault(key, data)
    return plan


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """The same on all ranks that hold parts of the same model and optimizer."""
    described = (
        f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if not name.startswith("extra.") or isinstance(tensor, DTensor)
    )
    return hash_bytes("\n".join(described).encode())


def _is_mine(tensor: torch.Tensor, rank: int) -> bool:
    return is_first_replica(tensor) if isinstance(tensor, DTensor) else rank == 0


def _check_writable(name: str, tensor: torch.Tensor) -> str:
    if is_lazy(tensor) or tensor.is_meta:
        raise CheckpointWriteError(
            f"tensor {name!r} has no memory yet (it is lazy or on the meta device).",
            cure="Materialise the model first: model.to_empty(device=...), or one forward for lazy modules.",
        )
    if isinstance(tensor, DTensor):
        if not is_box_sharded(tensor):
            raise CheckpointWriteError(
                f"tensor {name!r} has the placements {tensor.placements}, of which a checkpoint holds only "
                "Shard and Replicate.",
                cure="Redistribute it first, or keep it out of the checkpoint.",
            )
    elif _has_inner_tensors(tensor):
        raise CheckpointWriteError(
            f"tensor {name!r} is a {type(tensor).__name__}, whose inner tensors a checkpoint cannot hold.",
            cure="Convert it to a plain tensor first, or keep it out of the checkpoint.",
        )
    return dtype_name(name, tensor)


def _has_inner_tensors(tensor: torch.Tensor) -> bool:
    return bool(is_traceable_wrapper_subclass(tensor))
