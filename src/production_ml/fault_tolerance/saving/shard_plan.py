"""Who writes what: each box of each tensor once, by one rank, and tied tensors once under all their names."""

from __future__ import annotations

import weakref
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
)
from production_ml.fault_tolerance.checkpoint_format.pieces import Piece
from production_ml.fault_tolerance.checkpoint_format.tensor_types import dtype_name
from production_ml.fault_tolerance.checkpoint_state.capture_cache import Layout
from production_ml.fault_tolerance.saving.order import Holding, ShardContents
from production_ml.storage.hashing import hash_bytes


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What this rank writes. It alone keeps the tensors alive, so it is to be let go of when they are copied."""

    contents: ShardContents
    """The same object as in the plan before, where nothing has changed."""
    data: Mapping[str, torch.Tensor]
    """By key; still the training's own memory, on any device and in any stride."""
    owners: Mapping[str, torch.Tensor]
    """By key; the tensors themselves, as the training knows them."""
    fingerprint: str
    """The same on all ranks that hold parts of the same model and optimizer."""


@dataclass(frozen=True, slots=True)
class _Outline:
    """A plan without its tensors, which are the caller's each time."""

    contents: ShardContents
    sharded: tuple[str, ...]
    """The keys of DTensors."""
    fingerprint: str

    def plan_of(self, tensors: Mapping[str, torch.Tensor]) -> ShardPlan:
        owners = {key: tensors[key] for key in self.contents.layout.extents}
        data = owners
        if self.sharded:
            with torch.no_grad():  # else each local part would be a view for autograd, which takes ten times as long
                data = owners | {key: owners[key].to_local() for key in self.sharded}  # type: ignore[attr-defined]
        return ShardPlan(self.contents, data, owners, self.fingerprint)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found out about a tensor, and what it was true of.

    It holds no tensor alive: an optimizer's state that was replaced is not to stay in memory until the next save. A
    dead reference matches nothing.
    """

    tensor: weakref.ref[torch.Tensor]
    local: weakref.ref[torch.Tensor] | None
    """Of a DTensor; None of others."""
    pointer: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: str
    place: tuple[Any, ...]
    """The memory that the tensor stands for: tensors that share it are written once."""
    box: Box | None
    """None where another rank writes it."""
    name: str
    """Of the whole tensor, of which this may be a piece under a key of its own."""
    whole_shape: tuple[int, ...]
    is_own: bool
    """Whether it is this rank's alone, so that other ranks know nothing of it."""

    def is_true_of(self, tensor: torch.Tensor) -> bool:
        """Whether nothing has changed; asked of every tensor at every save, so it is brief."""
        if self.tensor() is not tensor:
            return False
        local = tensor
        if self.local is not None:
            local = tensor._local_tensor  # type: ignore[attr-defined]
            if self.local() is not local:
                return False
        return self.pointer == local.data_ptr() and self.shape == local.shape and self.stride == local.stride()

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    @property
    def kind(self) -> tuple[Any, ...]:
        """All that the shard's layout depends on."""
        return (self.dtype, self.box, self.whole_shape, self.local is None)


class ShardPlanner:
    """Plans saves. What it has found out about a tensor it knows the next time: only what changed costs anything.

    Args:
        rank: This rank.
    """

    def __init__(self, *, rank: int) -> None:
        self._rank = rank
        self.forget()

    def forget(self) -> None:
        """Know nothing of any tensor."""
        self._known: dict[str, _Known] = {}
        self._outline = _Outline(ShardContents.of(()), (), "")
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
        else:
            self._known = {name: looked_at.get(name) or before[name] for name in tensors}
            self._outline = self._outline_anew()
        # Only now: where a tensor could not be written, the next plan has to look at it again.
        self._layout = layout
        return self._outline.plan_of(tensors)

    def _look_at(self, name: str, tensor: torch.Tensor, piece: Piece | None) -> _Known:
        dtype = _check_writable(name, tensor)
        # The attribute and not to_local(), which makes a new tensor each time.
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        box: Box | None = None
        if piece is not None:
            box = piece.box
        elif self._is_mine(tensor):
            box = local_box(tensor)
        return _Known(
            tensor=weakref.ref(tensor),
            local=None if local is tensor else weakref.ref(local),
            pointer=local.data_ptr(),
            shape=local.shape,
            stride=local.stride(),
            dtype=dtype,
            place=_place_of(local),
            box=box,
            name=name if piece is None else piece.name,
            whole_shape=tuple(tensor.shape) if piece is None else piece.shape,
            is_own=piece is not None,
        )

    def _are_alike(self, looked_at: Mapping[str, _Known]) -> bool:
        """Whether the plan stands with these in the places of those before them."""
        # What stands for the same memory as another is written once; a tie may be new.
        pointers = {known.pointer for known in looked_at.values() if known.box is not None and not known.is_empty}
        now = (looked_at.get(name, known) for name, known in self._known.items())
        places = [known.place for known in now if known.pointer in pointers and known.box is not None]
        is_tied = len(set(places)) < len(places)
        return not is_tied and all(self._is_alike(name, known) for name, known in looked_at.items())

    def _is_alike(self, name: str, known: _Known) -> bool:
        """Whether a changed tensor takes the same place in the shard as the one before it."""
        before = self._known.get(name)
        return before is not None and name not in self._shared and before.kind == known.kind

    def _outline_anew(self) -> _Outline:
        keys: dict[Any, str] = {}
        holdings: list[Holding] = []
        sharded: list[str] = []
        self._shared = set()
        for name, known in self._known.items():
            if known.box is None:
                continue
            key = name if known.is_empty else keys.setdefault(known.place, name)
            if key != name:
                self._shared.update((key, name))
            elif known.local is not None:
                sharded.append(key)
            box = known.box
            holdings.append(Holding(known.name, key, known.dtype, known.whole_shape, box.offsets, box.shape))
        return _Outline(ShardContents.of(tuple(holdings)), tuple(sharded), self._fingerprint())

    def _is_mine(self, tensor: torch.Tensor) -> bool:
        return is_first_replica(tensor) if isinstance(tensor, DTensor) else self._rank == 0

    def _fingerprint(self) -> str:
        described = (
            f"{name} {known.dtype} {known.whole_shape}"
            for name, known in self._known.items()
            if not known.is_own and (not name.startswith("extra.") or known.local is not None)
        )
        return hash_bytes("\n".join(described).encode())


def _place_of(local: torch.Tensor) -> tuple[Any, ...]:
    flags = (local.is_conj(), local.is_neg())
    return (local.data_ptr(), local.device, local.dtype, local.shape, local.stride(), flags)


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
