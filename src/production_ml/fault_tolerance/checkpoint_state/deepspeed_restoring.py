"""Puts a checkpoint into a DeepSpeed engine: each rank reads the rows around its partitions, and exchanges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.pieces import rows_around, run_within
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, tensor_names
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.checkpoint_state.deepspeed_engine import COUNTERS, LOSS_SCALE, engine_state
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import (
    Fragment,
    flat_state,
    fragments,
    is_elementwise,
    is_stage_3_parameter,
    parameter_groups,
    partition_of,
)
from production_ml.fault_tolerance.checkpoint_state.mismatch import compare_names, mismatch
from production_ml.fault_tolerance.checkpoint_state.module_state import parameter_names, widens


class EngineRestoration:
    """Puts saved state into an engine of ZeRO stage 1, 2 or 3. Whether it fits is found out when this is built.

    Args:
        engine: The engine, which stays untouched until `apply`.
        values: The manifest's.
        entries: The checkpoint's tensors.

    Raises:
        CheckpointMismatchError: Names, shapes or element types differ, or it is another kind of optimizer.
    """

    def __init__(self, engine: Any, values: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> None:
        self._engine = engine
        self._model, self._saved, self._own = values["model"], values["optimizer"], values.get("engine")
        self._entries = entries
        self._live = engine_state(engine)
        compare_names("the model", list(self._model), list(self._live))
        self._names = parameter_names(self._live)
        self._fragments = list(fragments(engine.optimizer))
        self._trained = {id(fragment.parameter) for fragment in self._fragments}
        for fragment in self._fragments:
            self._check(self._name(fragment), fragment.shape, fragment.master.dtype, may_round=False)
        for name, value in self._live.items():
            if isinstance(value, torch.Tensor) and id(value) not in self._trained:
                # DeepSpeed itself rounds what does not train to the type of the forward pass.
                self._check(name, tuple(getattr(value, "ds_shape", value.shape)), value.dtype, may_round=True)
        if self._saved is not None:
            self._check_optimizer()
        self.boxes = self._boxes()

    def templates(self) -> dict[str, torch.Tensor]:
        """None: what is read is cut by count, and stands in `boxes`."""
        return {}

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy this rank's parts into the engine.

        Raises:
            CheckpointMismatchError: The parameters of a group were not stepped together.
        """
        shared = self._shared_state(tensors)
        for fragment in self._fragments:
            name = self._tensor(self._name(fragment))
            fragment.master.copy_(run_within(tensors[name], fragment.shape, fragment.start, fragment.stop))
        if self._saved is not None:
            self._apply_state(shared, tensors)
            self._apply_options(tensors)
        for name, value in self._live.items():
            self._apply_weights(value, decode_tree(self._model[name], tensors))
        if self._own is not None:
            self._apply_counters(decode_tree(self._own, tensors))

    def _name(self, fragment: Fragment) -> str:
        return self._names[id(fragment.parameter)]

    def _tensor(self, name: str) -> str:
        return str(self._model[name]["$tensor"])

    def _check(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, may_round: bool) -> None:
        encoded = self._model[name]
        entry = self._entries.get(encoded.get("$tensor", "")) if isinstance(encoded, dict) else None
        if entry is None:
            raise mismatch(f"the model's {name!r} is a tensor, but not in the checkpoint.")
        if entry.shape != shape:
            raise mismatch(
                f"the model's {name!r} has the shape {list(shape)}, but {list(entry.shape)} in the checkpoint."
            )
        saved = DTYPES[entry.dtype]
        # Wider is exact: a bfloat16 checkpoint may go into float32 masters.
        may_be_rounded = may_round and saved.is_floating_point and dtype.is_floating_point
        if saved != dtype and not may_be_rounded and not widens(saved, dtype):
            raise mismatch(f"the model's {name!r} is {dtype}, but {saved} in the checkpoint.")

    def _check_optimizer(self) -> None:
        inner = self._engine.optimizer.optimizer
        if self._saved["class"] != type(inner).__name__:
            raise mismatch(
                f"The checkpoint holds the state of {self._saved['class']}, but the engine's optimizer is "
                f"{type(inner).__name__}."
            )
        groups = parameter_groups(self._engine.optimizer)
        if len(groups) != len(self._saved["groups"]):
            raise mismatch(
                f"The engine's optimizer has {len(groups)} parameter groups, but {len(self._saved['groups'])} in the "
                "checkpoint."
            )
        for number, (saved, members) in enumerate(zip(self._saved["groups"], groups, strict=True)):
            names = [self._names[id(parameter)] for parameter in members]
            # What does not train is in a plain optimizer's groups all the same, and in no group of DeepSpeed's.
            frozen = {name for name, value in self._live.items() if not getattr(value, "requires_grad", True)}
            compare_names(f"the optimizer's group {number}", [n for n in saved["params"] if n not in frozen], names)

    def _boxes(self) -> dict[str, Box]:
        boxes: dict[str, Box] = {}
        for name in tensor_names(self._own):
            boxes[name] = whole(self._entries[name].shape)
        for name in tensor_names([group["options"] for group in self._saved["groups"]] if self._saved else []):
            boxes[name] = whole(self._entries[name].shape)
        for fragment in self._fragments:
            rows = rows_around(fragment.shape, fragment.start, fragment.stop)
            boxes[self._tensor(self._name(fragment))] = (
                whole(fragment.shape) if _is_whole_here(fragment.parameter) else rows
            )
            for name in tensor_names(self._state(fragment)):
                shape = self._entries[name].shape
                boxes[name] = rows if shape == fragment.shape and shape != () else whole(shape)
        for value, encoded in ((self._live[name], encoded) for name, encoded in self._model.items()):
            if id(value) not in self._trained:
                for name in tensor_names(encoded):
                    boxes[name] = whole(self._entries[name].shape)
        return boxes

    def _state(self, fragment: Fragment) -> dict[str, Any]:
        return self._saved["state"].get(self._name(fragment), {}) if self._saved is not None else {}

    def _is_elementwise(self, fragment: Fragment, encoded: Any) -> bool:
        name = encoded.get("$tensor") if isinstance(encoded, dict) else None
        return name is not None and self._entries[name].shape == fragment.shape and (fragment.shape != ())

    def _shared_state(self, tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, Any]]:
        """By flat tensor, what its parameters have in common: the count of steps."""
        shared: dict[int, dict[str, Any]] = {}
        for fragment in self._fragments:
            encoded = self._state(fragment)
            values = {
                key: decode_tree(value, tensors)
                for key, value in encoded.items()
                if not self._is_elementwise(fragment, value)
            }
            known = shared.setdefault(id(fragment.flat), values)
            if not _is_same(known, values):
                raise mismatch(
                    f"{self._name(fragment)!r} has {values} in the checkpoint, and others in its group {known}: "
                    "DeepSpeed steps a group as one.",
                    cure="Load it into a plain module, or put what was stepped apart into groups of its own.",
                )
        return shared

    def _apply_state(self, shared: Mapping[int, dict[str, Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        inner = self._engine.optimizer.optimizer
        for fragment in self._fragments:
            saved = self._state(fragment)
            state = inner.state[fragment.flat] if saved or flat_state(self._engine.optimizer, fragment) else {}
            for key, encoded in saved.items():
                if not self._is_elementwise(fragment, encoded):
                    state[key] = shared[id(fragment.flat)][key]
                    continue
                if not isinstance(state.get(key), torch.Tensor):
                    state[key] = torch.zeros_like(fragment.flat, dtype=DTYPES[self._entries[encoded["$tensor"]].dtype])
                rows = tensors[encoded["$tensor"]]
                fragment.of_state(state[key]).copy_(run_within(rows, fragment.shape, fragment.start, fragment.stop))
            if not saved:
                # From before the first step: zeros are what the optimizer would begin with.
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        (fragment.of_state(value) if is_elementwise(value, fragment) else value).zero_()

    def _apply_options(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for group, saved in zip(self._engine.optimizer.optimizer.param_groups, self._saved["groups"], strict=True):
            group.update(decode_tree(saved["options"], tensors))

    def _apply_weights(self, value: Any, saved: Any) -> None:
        """The weights that forward uses: the master copy, rounded; and whatever does not train."""
        if not isinstance(value, torch.Tensor):
            return
        with torch.no_grad():
            if is_stage_3_parameter(value):
                _apply_partition(value, saved)
            else:
                value.copy_(saved)

    def _apply_counters(self, own: Mapping[str, Any]) -> None:
        engine = self._engine
        for name in COUNTERS:
            if name in own["counters"]:
                setattr(engine, name, own["counters"][name])
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        for name in LOSS_SCALE:
            if name in own["loss_scale"] and hasattr(scaler, name):
                setattr(scaler, name, own["loss_scale"][name])
        if own["lr_scheduler"] is not None and hasattr(engine.lr_scheduler, "load_state_dict"):
            engine.lr_scheduler.load_state_dict(own["lr_scheduler"])


def _is_same(one: Any, other: Any) -> bool:
    """Whether two states are equal in every bit: printed, two tensors are alike that are not the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _is_whole_here(parameter: Any) -> bool:
    """Whether all of a parameter's weights are on this rank: stages 1 and 2 keep them so, stage 3 only small ones."""
    return not is_stage_3_parameter(parameter) or parameter.data.numel() == parameter.ds_numel


def _apply_partition(parameter: Any, saved: torch.Tensor) -> None:
    """Copy into a stage 3 parameter what was read of it: all, or the rows around this rank's partition."""
    start, length = partition_of(parameter)
    if _is_whole_here(parameter):
        parameter.copy_(saved)
    run = run_within(saved, tuple(parameter.ds_shape), start, start + length)
    parameter.ds_tensor.view(-1)[:length].copy_(run)
