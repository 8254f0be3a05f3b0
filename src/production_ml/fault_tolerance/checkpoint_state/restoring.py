"""All that one checkpoint gives back: what to read is planned first, and live objects are touched last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_format.boxes import Box, from_local, local_box, whole
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree, tensor_names
from production_ml.fault_tolerance.checkpoint_state.capture import check_extra_names
from production_ml.fault_tolerance.checkpoint_state.deepspeed_engine import check_is_own
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import is_engine, is_partitioned
from production_ml.fault_tolerance.checkpoint_state.deepspeed_restoring import EngineRestoration
from production_ml.fault_tolerance.checkpoint_state.mismatch import mismatch
from production_ml.fault_tolerance.checkpoint_state.module_state import ModuleRestoration, live_state, parameter_names
from production_ml.fault_tolerance.checkpoint_state.optimizer_state import OptimizerRestoration
from production_ml.fault_tolerance.checkpoint_state.per_rank import RankRestoration
from production_ml.fault_tolerance.checkpoint_state.stateful import Stateful, loadable


class _Part(Protocol):
    """One object that gets its state back."""

    def templates(self) -> dict[str, torch.Tensor]: ...

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> None: ...


class _ObjectRestoration:
    """An LR scheduler or the like."""

    def __init__(self, target: Stateful, name: str, encoded: Any) -> None:
        self._target = target
        self._name = name
        self._encoded = encoded
        present: dict[str, torch.Tensor] = {}
        encode_tree(target.state_dict(), f"extra.{name}", present)
        wanted = set(tensor_names(encoded))
        self._sharded = {key: item for key, item in present.items() if key in wanted and isinstance(item, DTensor)}

    def templates(self) -> dict[str, torch.Tensor]:
        return dict(self._sharded)

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> None:
        placed = dict(tensors)
        for name, template in self._sharded.items():
            placed[name] = from_local(tensors[name], template)
        try:
            self._target.load_state_dict(decode_tree(self._encoded, placed))
        except Exception as problem:  # the object is the user's own, and may refuse in any way
            raise mismatch(f"{self._name!r} does not take the state in the checkpoint ({problem!r}).") from problem


class Restoration:
    """A plan for one checkpoint: which boxes this rank reads, and what is done with them once they are verified."""

    def __init__(
        self,
        manifest: Manifest,
        parts: list[_Part],
        ranks: RankRestoration,
        read_for_parts: set[str],
        in_place: Mapping[str, Any],
    ) -> None:
        self._extras = {
            name: extra["value"] for name, extra in manifest.values["extra"].items() if name not in in_place
        }
        self._in_place = in_place
        self._parts = parts
        self._ranks = ranks
        templates = {name: tensor for part in parts for name, tensor in part.templates().items()}
        wanted = read_for_parts | ranks.wanted() | set(tensor_names(list(self._extras.values())))
        self.boxes: dict[str, Box] = {
            name: local_box(templates[name]) if name in templates else whole(entry.shape)
            for name, entry in manifest.tensors.items()
            if name in wanted
        }
        for part in parts:
            if isinstance(part, EngineRestoration):
                self.boxes.update(part.boxes)

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Give every object its state.

        The parts come in an order in which those that may still refuse are asked first.

        Args:
            tensors: The boxes, verified, as contiguous CPU tensors.

        Returns:
            The extras by name: those loaded in place themselves, the other objects as what their `state_dict()` was.

        Raises:
            CheckpointMismatchError: An object refuses its state.
        """
        of_ranks = self._ranks.apply(tensors)
        for part in self._parts:
            part.apply(tensors)
        extras = {name: decode_tree(value, tensors) for name, value in self._extras.items()}
        self._ranks.apply_random(tensors)
        return {**extras, **self._in_place, **of_ranks}


def plan_restoration(
    manifest: Manifest,
    model: nn.Module,
    optimizer: Optimizer | None,
    extra: Mapping[str, Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    random_state: bool = True,
) -> Restoration:
    """Find out whether a checkpoint fits, touching nothing.

    Args:
        manifest: The checkpoint's.
        model: Gets the model's state.
        optimizer: Gets the optimizer's state; where there is none, that is not read.
        extra: Objects that get the state of their name.
        rank: This rank.
        world_size: The number of ranks that load together.
        random_state: Restore this rank's random generators too.

    Raises:
        CheckpointMismatchError: It does not; the message names the parameter and both shapes.
        ConfigError: An extra cannot have its state loaded.
    """
    check_extra_names(extra)
    values = manifest.values
    ranks = RankRestoration(manifest, extra, rank=rank, world_size=world_size, random_state=random_state)
    shared = {name: target for name, target in extra.items() if name not in ranks.names}
    is_partitioned_engine = is_engine(model) and is_partitioned(model)
    names = {} if is_partitioned_engine else parameter_names(live_state(model))
    parts: list[_Part] = [_extra_part(manifest, name, target, names) for name, target in shared.items()]
    read = set(tensor_names([values["extra"][name]["value"] for name in shared]))
    if is_partitioned_engine:
        check_is_own(model, optimizer)
        parts.append(EngineRestoration(model, values, manifest.tensors))
        return Restoration(manifest, parts, ranks, read, shared)
    if optimizer is not None:
        if values["optimizer"] is None:
            raise _without_optimizer(values["extra"])
        parts.append(OptimizerRestoration(optimizer, "the optimizer", names, values["optimizer"], manifest.tensors))
        read.update(tensor_names(values["optimizer"]))
    is_of_engine = "engine" in values
    parts.append(ModuleRestoration(model, "the model", values["model"], manifest.tensors, may_widen=is_of_engine))
    read.update(tensor_names(values["model"]))
    return Restoration(manifest, parts, ranks, read, shared)


def _without_optimizer(extras: Mapping[str, Any]) -> CheckpointMismatchError:
    named = [name for name, saved in extras.items() if saved["kind"] == "optimizer"]
    if not named:
        return mismatch("The checkpoint was saved without an optimizer.", cure="Call load_latest(model) alone.")
    return mismatch(
        f"The checkpoint was saved without an optimizer, but with one as an extra: {', '.join(map(repr, named))}.",
        cure=f"Call load_latest(model, {named[0]}=optimizer), and save it with save(..., optimizer=optimizer).",
    )


def _extra_part(manifest: Manifest, name: str, target: Any, names: Mapping[int, str]) -> _Part:
    stateful = loadable(name, target)
    saved = manifest.values["extra"].get(name)
    if saved is None:
        raise mismatch(f"The checkpoint holds no {name!r}.", cure=f"Call load_latest() without {name}, or save it too.")
    kind = "module" if isinstance(target, nn.Module) else "optimizer" if isinstance(target, Optimizer) else "object"
    if saved["kind"] != kind:
        raise mismatch(f"{name!r} was saved as a {saved['kind']}, but is given as a {kind}.")
    if isinstance(target, nn.Module):
        return ModuleRestoration(target, repr(name), saved["value"], manifest.tensors)
    if isinstance(target, Optimizer):
        return OptimizerRestoration(target, repr(name), names, saved["value"], manifest.tensors)
    return _ObjectRestoration(stateful, name, saved["value"])
