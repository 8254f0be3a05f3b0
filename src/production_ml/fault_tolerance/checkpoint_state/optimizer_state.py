"""An optimizer's state by the names of its parameters, so that it survives another order, wrapper or world size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.boxes import from_local
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree, tensor_names
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache, Section, hold
from production_ml.fault_tolerance.checkpoint_state.mismatch import compare_names, mismatch

_NOT_OPTIONS: Final = ("params", "param_names")


def named_parameters(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Per group, its parameters and their names; one that is not in the model is named by its place.

    Raises:
        CheckpointWriteError: It is a ZeroRedundancyOptimizer: what it shows as its state is empty.
    """
    if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
        raise CheckpointWriteError(
            "The optimizer is a ZeroRedundancyOptimizer, of whose state each rank holds another part under no name.",
            cure="Shard model and optimizer with torch.distributed.fsdp.fully_shard (FSDP2) instead.",
        )
    for number, group in enumerate(optimizer.param_groups):
        yield [
            (names.get(id(parameter), f"#{number}.{index}"), parameter)
            for index, parameter in enumerate(group["params"])
        ]


def capture_optimizer(
    optimizer: Optimizer,
    names: Mapping[int, str],
    prefix: str,
    tensors: dict[str, torch.Tensor],
    cache: CaptureCache,
) -> dict[str, Any]:
    """The JSON form of an optimizer's state; its tensors are put into `tensors` as `<prefix>.<key>.<parameter>`.

    It reads `optimizer.state` itself. torch.distributed.checkpoint's `get_optimizer_state_dict` is not used because it
    calls `step()` on an optimizer without state, which runs hooks and schedules, and skips that when a gradient exists.

    Args:
        optimizer: The optimizer; one that has not stepped yet has no state, and comes back so.
        names: Names of parameters by `id`.
        prefix: The beginning of the tensors' names.
        tensors: Where its tensors are put.
        cache: What was captured before.
    """
    own: dict[str, torch.Tensor] = {}
    members, state = _capture_parameters(optimizer, names, prefix, own, cache)
    groups = capture_groups(optimizer, members, prefix, own)
    tensors.update(own)
    return {"class": _class_name(optimizer), "groups": groups, "state": state}


def capture_groups(
    optimizer: Optimizer, members: Sequence[list[str]], prefix: str, tensors: dict[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """The JSON form of an optimizer's groups: the names of their parameters, and their options."""
    groups = []
    for number, (group, params) in enumerate(zip(optimizer.param_groups, members, strict=True)):
        options = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
        groups.append({"params": params, "options": encode_tree(options, f"{prefix}.group{number}", tensors)})
    return groups


def _capture_parameters(
    optimizer: Optimizer, names: Mapping[int, str], prefix: str, own: dict[str, torch.Tensor], cache: CaptureCache
) -> tuple[list[list[str]], dict[str, Any]]:
    """The parameters' names by group, and their state by name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # get(), for the state is a defaultdict; the names of parameters are places too: another model may name them anew.
    held = [optimizer.state.get(parameter) or {} for parameter in parameters]
    places = (
        [len(group["params"]) for group in optimizer.param_groups],
        [names.get(id(parameter)) for parameter in parameters],
        [len(items) for items in held],
        [key for items in held for key in items],
    )
    values = [value for items in held for value in items.values()]
    known = cache.sections.get(prefix)
    if known is not None and known.is_unchanged(places, [*parameters, *values]):
        own.update(zip(known.names, (value for value in values if isinstance(value, torch.Tensor)), strict=True))
        return cast(tuple[list[list[str]], dict[str, Any]], known.encoded)
    members, state = [], {}
    for named in named_parameters(optimizer, names):
        members.append([name for name, _ in named])
        for name, parameter in named:
            items = optimizer.state.get(parameter)
            if items:
                state[name] = {key: encode_tree(value, f"{prefix}.{key}.{name}", own) for key, value in items.items()}
    if all(isinstance(value, torch.Tensor | int | float | None) for value in values):
        cache.sections[prefix] = Section(places, hold([*parameters, *values]), (members, state), list(own))
    return members, state


class OptimizerRestoration:
    """Puts saved state into an optimizer. Whether it fits is found out when this is built.

    Args:
        optimizer: The optimizer, which stays untouched until `apply`.
        owner: What messages call it, such as "the optimizer".
        names: Names of parameters by `id`.
        encoded: What `capture_optimizer` made.
        entries: The checkpoint's tensors.

    Raises:
        CheckpointMismatchError: It is another kind of optimizer, or has other groups or parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        owner: str,
        names: Mapping[int, str],
        encoded: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
    ) -> None:
        self._optimizer = optimizer
        self._encoded = encoded
        self._groups = list(named_parameters(optimizer, names))
        self._check_fits(owner)
        self._templates: dict[str, DTensor] = {}
        for name, parameter in (named for group in self._groups for named in group):
            if isinstance(parameter, DTensor):
                self._plan_sharded(encoded["state"].get(name, {}), parameter, entries)

    def templates(self) -> dict[str, torch.Tensor]:
        """For each sharded tensor to read, the parameter whose placement it gets; the others are read whole."""
        return dict(self._templates)

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give the optimizer its options and this rank's parts of its state."""
        placed = dict(tensors)
        for name, template in self._templates.items():
            placed[name] = from_local(tensors[name], template)
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        index = 0
        for named, saved in zip(self._groups, self._encoded["groups"], strict=True):
            groups.append({**decode_tree(saved["options"], placed), "params": list(range(index, index + len(named)))})
            for name, _ in named:
                if name in self._encoded["state"]:
                    state[index] = decode_tree(self._encoded["state"][name], placed)
                index += 1
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._undo_casts(state)

    def _undo_casts(self, saved: Mapping[int, Any]) -> None:
        """load_state_dict() casts state to its parameter's type: float32 moments of bfloat16 weights would be lost."""
        parameters = [parameter for group in self._groups for _, parameter in group]
        for index, values in saved.items():
            held = self._optimizer.state[parameters[index]]
            for key, value in values.items():
                if key != "step" and isinstance(value, torch.Tensor) and held[key].dtype != value.dtype:
                    held[key] = value.to(held[key].device)

    def _plan_sharded(self, encoded: Mapping[str, Any], parameter: DTensor, entries: Mapping[str, TensorEntry]) -> None:
        """State in its parameter's shape is sharded like it; the rest, such as a count of steps, is on every rank."""
        for name in tensor_names(list(encoded.values())):
            if entries[name].shape == tuple(parameter.shape):
                self._templates[name] = parameter

    def _check_fits(self, owner: str) -> None:
        saved, current = self._encoded["groups"], self._groups
        if self._encoded["class"] != _class_name(self._optimizer):
            was, is_now = self._encoded["class"], _class_name(self._optimizer)
            raise mismatch(f"The checkpoint holds the state of {was}, but {owner} is {is_now}.")
        if len(saved) != len(current):
            raise mismatch(f"{owner} has {len(current)} parameter groups, but {len(saved)} in the checkpoint.")
        for number, (group, named) in enumerate(zip(saved, current, strict=True)):
            # DeepSpeed leaves out of its groups what does not train.
            expected = [name for name, parameter in named if parameter.requires_grad or name in group["params"]]
            compare_names(f"{owner}'s group {number}", group["params"], expected)


def _class_name(optimizer: Optimizer) -> str:
    """The class, looked up inside wrappers such as Accelerate's."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
