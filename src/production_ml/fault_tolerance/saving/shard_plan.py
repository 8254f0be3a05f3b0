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
from production_ml.fault_tolerance.checkpoint_format.tensor_types import dtype_name
from production_ml.fault_tolerance.saving.order import Holding, ShardContents
from production_ml.storage.hashing import hash_bytes


@dataclass(slots=True)
class ShardPlan:
    """What this rank writes."""

    contents: ShardContents
    """The same object as in the plan before, where nothing has changed."""
    data: dict[str, torch.Tensor]
    """By key; still the training's own memory, on any device and in any stride."""
    owners: dict[str, torch.Tensor]
    """By key; the tensors themselves, as the training knows them."""
    fingerprint: str
    """The same on all ranks that hold parts of the same model and optimizer."""


@dataclass(slots=True)
class _Known:
    """What was found out about a tensor, and what it was true of."""

    tensor: torch.Tensor
    local: torch.Tensor
    place: tuple[Any, ...]
    dtype: str
    box: Box | None
    """None where another rank writes it."""
    data: torch.Tensor


class ShardPlanner:
    """Plans saves. What it has found out about a tensor it knows the next time: only what changed costs anything.

    Args:
        rank: This rank.
    """

    def __init__(self, *, rank: int) -> None:
        self._rank = rank
        self._known: dict[str, _Known] = {}
        self._holdings: dict[tuple[str, str], Holding] = {}
        self._contents = ShardContents.of(())
        self._described: tuple[list[tuple[str, torch.dtype, torch.Size]], str] = ([], "")

    def plan(self, tensors: Mapping[str, torch.Tensor]) -> ShardPlan:
        """Choose this rank's boxes. Plain tensors are the same on all ranks, and rank 0's are the ones that count.

        Raises:
            CheckpointWriteError: A tensor cannot be saved; the message names it.
        """
        self._known = {name: self._look_at(name, tensor) for name, tensor in tensors.items()}
        data: dict[str, torch.Tensor] = {}
        owners: dict[str, torch.Tensor] = {}
        keys: dict[Any, str] = {}
        holdings: dict[tuple[str, str], Holding] = {}
        for name, known in self._known.items():
            if known.box is None:
                continue
            key = keys.setdefault(known.place, name) if known.data.numel() else name
            holdings[name, key] = self._holding(name, key, known, known.box)
            if key not in data:
                data[key], owners[key] = known.data, known.tensor
        self._holdings = holdings
        if self._contents.holdings != (held := tuple(holdings.values())):
            self._contents = ShardContents.of(held)
        return ShardPlan(self._contents, data, owners, self._fingerprint(tensors))

    def _look_at(self, name: str, tensor: torch.Tensor) -> _Known:
        known = self._known.get(name)
        # The attribute and not to_local(), which makes a new tensor each time.
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if known is not None and known.tensor is tensor and known.local is local and known.place == _place(local):
            return known
        dtype = _check_writable(name, tensor)
        box = local_box(tensor) if self._is_mine(tensor) else None
        return _Known(tensor, local, _place(local), dtype, box, local_data(tensor))

    def _holding(self, name: str, key: str, known: _Known, box: Box) -> Holding:
        before = self._holdings.get((name, key))
        shape = tuple(known.tensor.shape)
        held = (name, key, known.dtype, shape, box.offsets, box.shape)
        return before if before is not None and before == held else Holding(*held)

    def _is_mine(self, tensor: torch.Tensor) -> bool:
        return is_first_replica(tensor) if isinstance(tensor, DTensor) else self._rank == 0

    def _fingerprint(self, tensors: Mapping[str, torch.Tensor]) -> str:
        described = [
            (name, tensor.dtype, tensor.shape)
            for name, tensor in tensors.items()
            if not name.startswith("extra.") or isinstance(tensor, DTensor)
        ]
        if described != self._described[0]:
            lines = (f"{name} {dtype} {tuple(shape)}" for name, dtype, shape in described)
            self._described = described, hash_bytes("\n".join(lines).encode())
        return self._described[1]


def _place(local: torch.Tensor) -> tuple[Any, ...]:
    """The memory that a tensor stands for: tensors that share it are written once."""
    if local.is_meta or is_lazy(local) or local.layout is not torch.strided:
        return (id(local),)
    return (
        local.data_ptr(),
        local.device,
        local.dtype,
        local.shape,
        local.stride(),
        local.is_conj(),
        local.is_neg(),
    )


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
