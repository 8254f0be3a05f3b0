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
from production_ml.fault_tolerance.checkpoint_format.pieces import Piece
from production_ml.fault_tolerance.checkpoint_format.tensor_types import dtype_name
from production_ml.fault_tolerance.checkpoint_state.capture_cache import Layout
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
    pointer: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: str
    box: Box | None
    """None where another rank writes it."""
    data: torch.Tensor
    name: str
    """Of the whole tensor, of which this may be a piece under a key of its own."""
    whole_shape: tuple[int, ...]
    is_own: bool
    """Whether it is this rank's alone, so that other ranks know nothing of it."""

    def is_true_of(self, tensor: torch.Tensor) -> bool:
        """Whether nothing has changed; asked of every tensor at every save, so it is brief."""
        local = self.local
        return (
            self.tensor is tensor
            and (tensor is local or tensor._local_tensor is local)  # type: ignore[attr-defined]
            and self.pointer == local.data_ptr()
            and self.shape == local.shape
            and self.stride == local.stride()
        )

    @property
    def place(self) -> tuple[Any, ...]:
        """The memory that the tensor stands for: tensors that share it are written once."""
        flags = (self.local.is_conj(), self.local.is_neg())
        return (self.pointer, self.local.device, self.local.dtype, self.shape, self.stride, flags)


class ShardPlanner:
    """Plans saves. What it has found out about a tensor it knows the next time: only what changed costs anything.

    Args:
        rank: This rank.
    """

    def __init__(self, *, rank: int) -> None:
        self._rank = rank
        self._known: dict[str, _Known] = {}
        self._plan = ShardPlan(ShardContents.of(()), {}, {}, "")
        self._layout: Layout | None = None
        self._shared: set[str] = set()
        """The keys under which several names stand, and those names."""

    def plan(
        self,
        tensors: Mapping[str, torch.Tensor],
        pieces: Mapping[str, Piece] | None = None,
        layout: Layout | None = None,
    ) -> ShardPlan:
        """Choose this rank's boxes. Plain tensors are the same on all ranks, and rank 0's are the ones that count.

        Args:
            tensors: What all ranks know by the same names.
            pieces: What this rank alone has, by the key to write it under.
            layout: Of `tensors`; where it is the one of the plan before, none of them is looked at again.

        Raises:
            CheckpointWriteError: A tensor cannot be saved; the message names it.
        """
        before = self._known
        pieces = pieces or {}
        own = {key: piece.data for key, piece in pieces.items()}
        to_look_at = own if layout is not None and layout is self._layout else {**tensors, **own}
        self._layout = layout
        tensors = {**tensors, **own}
        changed = [
            name
            for name, tensor in to_look_at.items()
            if (known := before.get(name)) is None or not known.is_true_of(tensor)
        ]
        looked_at = {name: self._look_at(name, tensors[name], pieces.get(name)) for name in changed}
        if len(before) == len(tensors) and self._are_alike(looked_at):
            # New tensors in the places of old ones, as the state of a random generator is at each save.
            before.update(looked_at)
            for name, known in looked_at.items():
                if known.box is not None:
                    self._plan.data[name], self._plan.owners[name] = known.data, known.tensor
            return self._plan
        self._known = {name: looked_at.get(name) or before[name] for name in tensors}
        self._plan = self._plan_anew()
        return self._plan

    def _look_at(self, name: str, tensor: torch.Tensor, piece: Piece | None) -> _Known:
        dtype = _check_writable(name, tensor)
        # The attribute and not to_local(), which makes a new tensor each time.
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        place = local.data_ptr(), local.shape, local.stride(), dtype
        if piece is not None:
            return _Known(tensor, local, *place, piece.box, local_data(tensor), piece.name, piece.shape, is_own=True)
        box = local_box(tensor) if self._is_mine(tensor) else None
        return _Known(tensor, local, *place, box, local_data(tensor), name, tuple(tensor.shape), is_own=False)

    def _are_alike(self, looked_at: Mapping[str, _Known]) -> bool:
        """Whether the plan stands with these in the places of those before them."""
        # What stands for the same memory as another is written once; a tie may be new.
        pointers = {known.pointer for known in looked_at.values() if known.box is not None and known.data.numel()}
        now = (looked_at.get(name, known) for name, known in self._known.items())
        places = [known.place for known in now if known.pointer in pointers and known.box is not None]
        is_tied = len(set(places)) < len(places)
        return not is_tied and all(self._is_alike(name, known) for name, known in looked_at.items())

    def _is_alike(self, name: str, known: _Known) -> bool:
        """Whether a changed tensor takes the same place in the shard as the one before it."""
        before = self._known.get(name)
        return (
            before is not None
            and name not in self._shared
            and (before.dtype, before.box, before.whole_shape) == (known.dtype, known.box, known.whole_shape)
        )

    def _plan_anew(self) -> ShardPlan:
        data: dict[str, torch.Tensor] = {}
        owners: dict[str, torch.Tensor] = {}
        keys: dict[Any, str] = {}
        holdings: list[Holding] = []
        self._shared = set()
        for name, known in self._known.items():
            if known.box is None:
                continue
            key = keys.setdefault(known.place, name) if known.data.numel() else name
            if key != name:
                self._shared.update((key, name))
            box = known.box
            holdings.append(Holding(known.name, key, known.dtype, known.whole_shape, box.offsets, box.shape))
            if key not in data:
                data[key], owners[key] = known.data, known.tensor
        return ShardPlan(ShardContents.of(tuple(holdings)), data, owners, self._fingerprint())

    def _is_mine(self, tensor: torch.Tensor) -> bool:
        return is_first_replica(tensor) if isinstance(tensor, DTensor) else self._rank == 0

    def _fingerprint(self) -> str:
        described = (
            f"{name} {known.dtype} {tuple(known.tensor.shape)}"
            for name, known in self._known.items()
            if not known.is_own and (not name.startswith("extra.") or isinstance(known.tensor, DTensor))
        )
        return hash_bytes("\n".join(described).encode())


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
