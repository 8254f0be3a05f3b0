"""A DeepSpeed engine's state in the form of a plain module and its optimizer: one checkpoint for all ranks and stages.

The master copy of each parameter (float32, unless DeepSpeed was told otherwise) is what is saved as the model: the
weights that the forward pass uses are that copy, rounded. So a checkpoint of any ZeRO stage loads into any other,
into any number of ranks, and into a plain float32 module with the same torch optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_format.pieces import Piece, pieces_of_run
from production_ml.fault_tolerance.checkpoint_format.state_tree import encode_tree
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache, Section, hold
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import (
    Fragment,
    flat_state,
    flat_tensors,
    fragments,
    is_elementwise,
    is_stage_3_parameter,
    parameter_groups,
    partition_of,
)
from production_ml.fault_tolerance.checkpoint_state.module_state import clean_name, parameter_names
from production_ml.fault_tolerance.checkpoint_state.optimizer_state import capture_groups

COUNTERS: Final = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
LOSS_SCALE: Final = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def engine_state(engine: Any) -> dict[str, Any]:
    """The module's own state by name; of a stage 3 parameter only its partition may be there."""
    return {clean_name(name): value for name, value in engine.module.state_dict(keep_vars=True).items()}


def check_is_own(engine: Any, optimizer: Any) -> None:
    """Refuse an optimizer that is not the engine's.

    Raises:
        ConfigError: It is another one.
    """
    if optimizer is not None and optimizer is not engine.optimizer and optimizer is not engine.optimizer.optimizer:
        raise ConfigError(
            "optimizer", type(optimizer).__name__, "is not the engine's own", cure="Pass engine.optimizer."
        )


def capture_engine(
    engine: Any, tensors: dict[str, torch.Tensor], pieces: dict[str, Piece], cache: CaptureCache
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The JSON of model, optimizer and engine.

    Args:
        engine: The engine, of ZeRO stage 1, 2 or 3.
        tensors: Gets what is the same on all ranks, by name.
        pieces: Gets what this rank alone holds, by key.
        cache: What was captured before.

    Raises:
        CheckpointWriteError: The optimizer keeps state that is neither one number for each element nor one for all.
    """
    live = engine_state(engine)
    names = parameter_names(live)
    held = _capture_held(engine.optimizer, live, names, cache)
    tensors.update(held.tensors)
    pieces.update(held.pieces)
    members = [[names[id(parameter)] for parameter in group] for group in parameter_groups(engine.optimizer)]
    groups = capture_groups(engine.optimizer.optimizer, members, "optimizer", tensors)
    optimizer = {"class": type(engine.optimizer.optimizer).__name__, "groups": groups, "state": held.state}
    return held.model, optimizer, _capture_counters(engine, tensors)


@dataclass(slots=True)
class _Held:
    """What an engine's tensors are in a checkpoint."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def _capture_held(optimizer: Any, live: Mapping[str, Any], names: Mapping[int, str], cache: CaptureCache) -> _Held:
    """Cutting thousands of runs takes its time, and the runs are the same as long as the flat tensors are."""
    flats = list(flat_tensors(optimizer))
    states = [optimizer.optimizer.state.get(flat) or {} for flat in flats]
    partitions = [value.ds_tensor for value in live.values() if is_stage_3_parameter(value)]
    objects = [*live.values(), *flats, *partitions, *(value for state in states for value in state.values())]
    places = (
        list(live),
        [list(state) for state in states],
        [item.data_ptr() for item in objects if isinstance(item, torch.Tensor)],
    )
    known = cache.sections.get("engine")
    if known is not None and known.is_unchanged(places, objects):
        return cast(_Held, known.encoded)
    held = _Held()
    parts = list(fragments(optimizer))
    held.model = _capture_model(live, names, parts, held.tensors, held.pieces)
    held.state = _capture_state(optimizer, names, parts, held.tensors, held.pieces)
    seen = {id(item) for item in objects}
    if all(id(tensor) in seen for tensor in held.tensors.values()):
        cache.sections["engine"] = Section(places, hold(objects), held, ())
    return held


def _capture_model(
    live: Mapping[str, Any],
    names: Mapping[int, str],
    held: list[Fragment],
    tensors: dict[str, torch.Tensor],
    pieces: dict[str, Piece],
) -> dict[str, Any]:
    trained = {id(fragment.parameter) for fragment in held}
    for fragment in held:
        name = f"model.{names[id(fragment.parameter)]}"
        pieces.update(pieces_of_run(name, fragment.shape, fragment.start, fragment.master))
    model: dict[str, Any] = {}
    for name, value in live.items():
        first = names[id(value)]
        if id(value) in trained or (is_stage_3_parameter(value) and first != name):
            model[name] = {"$tensor": f"model.{first}"}
        elif is_stage_3_parameter(value):
            start, length = partition_of(value)
            run = value.ds_tensor.detach().view(-1)[:length]
            pieces.update(pieces_of_run(f"model.{name}", tuple(value.ds_shape), start, run))
            model[name] = {"$tensor": f"model.{name}"}
        else:
            model[name] = encode_tree(value, f"model.{name}", tensors)
    return model


def _capture_state(
    optimizer: Any,
    names: Mapping[int, str],
    held: list[Fragment],
    tensors: dict[str, torch.Tensor],
    pieces: dict[str, Piece],
) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for fragment in held:
        name = names[id(fragment.parameter)]
        for key, value in flat_state(optimizer, fragment).items():
            tensor_name = f"optimizer.{key}.{name}"
            if is_elementwise(value, fragment):
                run = fragment.of_state(value)
                pieces.update(pieces_of_run(tensor_name, fragment.shape, fragment.start, run))
                state.setdefault(name, {})[key] = {"$tensor": tensor_name}
            elif isinstance(value, torch.Tensor) and value.dim() > 0:
                raise CheckpointWriteError(
                    f"{tensor_name} has {value.numel()} elements for {fragment.flat.numel()} of its parameters, which "
                    "a checkpoint of a DeepSpeed engine cannot hold.",
                    cure="Use an optimizer whose state has one number for each element, such as Adam.",
                )
            else:
                state.setdefault(name, {})[key] = encode_tree(value, tensor_name, tensors)
    return state


def _capture_counters(engine: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    scheduler = engine.lr_scheduler
    state = {
        "counters": {name: getattr(engine, name) for name in COUNTERS if hasattr(engine, name)},
        "loss_scale": {name: getattr(scaler, name) for name in LOSS_SCALE if hasattr(scaler, name)},
        "lr_scheduler": scheduler.state_dict() if hasattr(scheduler, "state_dict") else None,
    }
    encoded: dict[str, Any] = encode_tree(state, "engine", tensors)
    return encoded
