"""A module's state by the names that it has without wrappers, so that plain, DDP, compiled and FSDP2 models agree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.boxes import from_local
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache, Section, hold
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import (
    is_engine,
    is_held_by_engine,
    is_partitioned,
)
from production_ml.fault_tolerance.checkpoint_state.mismatch import compare_names, mismatch

_WRAPPER_SEGMENTS: Final = ("_orig_mod.", "_checkpoint_wrapped_module.")


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module inside DDP, torch.compile and a DeepSpeed engine."""
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel) or is_engine(module):
            module = cast(nn.Module, module.module)
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def live_state(module: nn.Module) -> dict[str, Any]:
    """The module's own state (not copies) by the names that it has without wrappers.

    It goes through `state_dict()`, whose hooks bring FSDP2's parameters back to their shards; after a forward without
    backward, `named_parameters()` alone would give the gathered ones.

    Raises:
        CheckpointWriteError: The module is wrapped in FSDP1, whose flat parameters have no stable names, or a ZeRO
            engine of DeepSpeed holds its values.
    """
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules()):
        raise CheckpointWriteError(
            "The model is wrapped in FullyShardedDataParallel (FSDP1), which checkpoints do not support.",
            cure="Shard it with torch.distributed.fsdp.fully_shard (FSDP2) instead.",
        )
    live = {clean_name(name): value for name, value in unwrapped(module).state_dict(keep_vars=True).items()}
    _refuse_part_of_engine(module, live)
    return live


def _refuse_part_of_engine(module: nn.Module, live: Mapping[str, Any]) -> None:
    """Stage 3 leaves empty parameters; stages 1 and 2 leave rounded ones, which the engine's masters overwrite."""
    if is_engine(module) and is_partitioned(module):
        what = "A DeepSpeed engine of ZeRO stage 1, 2 or 3 was given as something other than the model."
    elif held := next((name for name, value in live.items() if is_held_by_engine(value)), None):
        what = f"The values of {held!r} are held by a ZeRO engine of DeepSpeed, which was not given itself."
    else:
        return
    raise CheckpointWriteError(
        what,
        meaning="Its masters and moments are in the engine alone: nothing was saved or loaded.",
        cure="Pass the engine as the model (save(model=engine), load_latest(engine)): not engine.module, nor as an "
        "extra.",
    )


def clean_name(name: str) -> str:
    """`name` without what torch.compile and activation checkpointing put into it."""
    for segment in _WRAPPER_SEGMENTS:
        name = name.replace(segment, "")
    return name


def parameter_names(live: Mapping[str, Any]) -> dict[int, str]:
    """The first name of each parameter in a `live_state`, by its `id`."""
    names: dict[int, str] = {}
    for name, value in live.items():
        names.setdefault(id(value), name)
    return names


def capture_module(
    live: Mapping[str, Any], prefix: str, tensors: dict[str, torch.Tensor], cache: CaptureCache
) -> dict[str, Any]:
    """The JSON form of a `live_state`; its tensors are put into `tensors` as `<prefix>.<parameter>`."""
    names, values = list(live), list(live.values())
    known = cache.sections.get(prefix)
    if known is not None and known.is_unchanged(names, values):
        tensors.update(zip(known.names, values, strict=True))
        return cast(dict[str, Any], known.encoded)
    own: dict[str, torch.Tensor] = {}
    encoded = {name: encode_tree(value, f"{prefix}.{name}", own) for name, value in live.items()}
    # What a module keeps as extra state is not remembered: it comes as new values each time.
    if list(map(id, own.values())) == list(map(id, values)):
        cache.sections[prefix] = Section(names, hold(values), encoded, list(own))
    tensors.update(own)
    return encoded


class ModuleRestoration:
    """Puts saved state into a module. Whether it fits is found out when this is built.

    Args:
        module: The module, which stays untouched until `apply`.
        owner: What messages call it, such as "the model".
        encoded: What `capture_module` made.
        entries: The checkpoint's tensors.
        may_widen: Take bfloat16 for float32 and the like, which is exact: a DeepSpeed engine keeps what does not train
            in the type of its forward pass.

    Raises:
        CheckpointMismatchError: Names, shapes or element types differ.
    """

    def __init__(
        self,
        module: nn.Module,
        owner: str,
        encoded: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        may_widen: bool = False,
    ) -> None:
        self._module = unwrapped(module)
        self._encoded = encoded
        self._live = live_state(module)
        compare_names(owner, list(encoded), list(self._live))
        self._tensors = {name: value for name, value in self._live.items() if isinstance(value, torch.Tensor)}
        for name, tensor in self._tensors.items():
            _check_fits(f"{owner}'s {name!r}", tensor, _entry(encoded[name], entries), may_widen=may_widen)

    def templates(self) -> dict[str, torch.Tensor]:
        """For each tensor to read, the tensor whose local part is wanted."""
        return {self._encoded[name]["$tensor"]: tensor for name, tensor in self._tensors.items()}

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy this rank's parts into the module."""
        template = self._module.state_dict(keep_vars=True)
        state = OrderedDict((name, self._value(clean_name(name), tensors)) for name in template)
        # load_state_dict() finds the versions of the modules there.
        state._metadata = getattr(template, "_metadata", None)  # type: ignore[attr-defined]
        self._module.load_state_dict(state)

    def _value(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Any:
        live = self._live[name]
        value = decode_tree(self._encoded[name], tensors)
        return from_local(value, live) if isinstance(live, DTensor) else value


def _entry(encoded: Any, entries: Mapping[str, TensorEntry]) -> TensorEntry | None:
    name = encoded.get("$tensor") if isinstance(encoded, dict) else None
    return entries.get(cast(str, name))


def _check_fits(what: str, tensor: torch.Tensor, entry: TensorEntry | None, *, may_widen: bool) -> None:
    if is_lazy(tensor) or tensor.is_meta:
        raise mismatch(
            f"{what} has no memory yet (it is lazy or on the meta device).",
            cure="Materialise the model first: model.to_empty(device=...), or one forward for lazy modules.",
        )
    if tensor.layout is torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise mismatch(
            f"{what} has elements that share memory (it was made by expand()), which cannot be loaded in place.",
            cure="Give it memory of its own: register tensor.clone() or tensor.contiguous().",
        )
    if entry is None:
        raise mismatch(f"{what} is a tensor, but not in the checkpoint.")
    if entry.shape != tuple(tensor.shape):
        raise mismatch(f"{what} has the shape {list(tensor.shape)}, but {list(entry.shape)} in the checkpoint.")
    saved = DTYPES[entry.dtype]
    if saved != tensor.dtype and not (may_widen and widens(saved, tensor.dtype)):
        raise mismatch(f"{what} is {tensor.dtype}, but {saved} in the checkpoint.")


def widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every number of one floating-point type is one of the other too."""
    return narrow.is_floating_point and wide.is_floating_point and torch.promote_types(narrow, wide) == wide
