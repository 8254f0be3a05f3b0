"""A state dict that others saved, sorted into what a checkpoint holds: model, optimizer, and everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.state_tree import encode_tree
from production_ml.fault_tolerance.checkpoint_state.capture import RESERVED_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache
from production_ml.fault_tolerance.checkpoint_state.module_state import capture_module
from production_ml.fault_tolerance.interchange.optimizer_forms import encode_optimizer, is_optimizer_state
from production_ml.fault_tolerance.interchange.whole_state import ORIGIN, RANK_VALUES

_MODEL_KEYS: Final = ("model", "model_state_dict", "state_dict", "app.model", "module")
_OPTIMIZER_KEYS: Final = ("optimizer", "optim", "optimizer_state_dict", "app.optim")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How a state dict is to be read.

    Attributes:
        model_key: Where the model's state is, such as `state_dict` or `app.model`; None finds the usual ones.
        strip_prefix: Taken off the beginning of parameters' names, such as `module.`.
        optimizer_class: The class of the optimizer, such as `AdamW`, for its state to be resumed as an optimizer's.
        model_only: Leave out everything but the model.
    """

    model_key: str | None = None
    strip_prefix: str = ""
    optimizer_class: str | None = None
    model_only: bool = False


@dataclass(slots=True)
class SortedState:
    """What a checkpoint is made from."""

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """By their names in the checkpoint; the objects are those of the state dict."""
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a person should know of the outcome."""


def sort_state(state: Mapping[str, Any], config: ImportConfig) -> SortedState:
    """Sort a state dict.

    A flat one of tensors is a model. What is neither the model nor a known optimizer becomes an extra of its own name,
    which `load_latest` gives back.

    Raises:
        ConfigError: The model cannot be found in it.
        CheckpointWriteError: Something in it cannot be saved; the message names it.
    """
    origin = _origin(state)
    rest = {key: value for key, value in state.items() if key != ORIGIN}
    model = _take_model(rest, config)
    found = SortedState({"model": {}, "optimizer": None, "extra": {}}, {}, step=_take_step(rest))
    found.values["model"] = capture_module(_renamed(model, config.strip_prefix), "model", found.tensors, CaptureCache())
    found.metrics = _take_metrics(rest)
    if config.model_only:
        return found
    classes = dict(origin["optimizer_classes"]) if origin else {}
    _take_optimizer(rest, found, config.optimizer_class or classes.pop("optimizer", None), config.strip_prefix)
    if origin and rest.pop(RANK_VALUES, None) is not None:
        found.notes.append(
            "Random generators and PerRank extras stay behind: they belong to the processes that saved them."
        )
    for key, value in rest.items():
        name = _extra_name(key, rest)
        found.values["extra"][name] = _extra(name, value, origin, found)
    return found


def _extra_name(key: str, rest: Mapping[str, Any]) -> str:
    """The name that what stood at `key` has as an extra: another where a checkpoint has a use of its own for it."""
    name = f"{key}_state" if key in RESERVED_NAMES else key
    while name != key and name in rest:
        name += "_"
    return name


def _origin(state: Mapping[str, Any]) -> dict[str, Any]:
    """What an export of ours left for the import; nothing where it was not ours, or is not what it should be."""
    try:
        origin = json.loads(state.get(ORIGIN, "{}"))
    except (TypeError, ValueError):
        return {}
    is_ours = isinstance(origin, dict) and all(
        isinstance(origin.get(part), dict) for part in ("optimizer_classes", "extra_kinds")
    )
    return origin if is_ours else {}


def _take_model(rest: dict[str, Any], config: ImportConfig) -> Mapping[str, Any]:
    for key in (config.model_key,) if config.model_key is not None else _MODEL_KEYS:
        if isinstance(_take(dict(rest), key), Mapping):
            model: Mapping[str, Any] = _take(rest, key)
            return model
    if config.model_key is None and rest and all(isinstance(value, torch.Tensor) for value in rest.values()):
        flat = dict(rest)
        rest.clear()
        return flat
    held = ", ".join(sorted(map(str, rest))[:12]) or "nothing"
    if config.model_key is not None:
        raise ConfigError("model_key", config.model_key, f"is not there, or holds no state dict (found: {held})")
    raise ConfigError(
        "model_key",
        None,
        f"the model's state was not found under {', '.join(_MODEL_KEYS[:3])} (found: {held})",
        cure="Say where it is: --model-key KEY, or KEY.KEY where it is nested.",
    )


def _take(rest: dict[str, Any], dotted: str) -> Any:
    """Take out the value at a key, or at keys joined by dots; a container that is emptied goes too."""
    if dotted in rest:
        return rest.pop(dotted)
    first, _, others = dotted.partition(".")
    inner = rest.get(first)
    if not others or not isinstance(inner, Mapping):
        return None
    remaining = dict(inner)
    value = _take(remaining, others)
    if value is None:
        return None
    rest[first] = remaining
    if not remaining:
        del rest[first]
    return value


def _renamed(named: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    renamed = {str(name).removeprefix(prefix): value for name, value in named.items()}
    if len(renamed) < len(named):
        raise ConfigError("strip_prefix", prefix, "two names would become one without it", cure="Give another prefix.")
    return renamed


def _take_metrics(rest: dict[str, Any]) -> dict[str, float]:
    metrics = rest.get("metrics")
    if not isinstance(metrics, Mapping) or not all(type(value) in (int, float) for value in metrics.values()):
        return {}
    del rest["metrics"]
    return {str(name): float(value) for name, value in metrics.items()}


def _take_optimizer(rest: dict[str, Any], found: SortedState, optimizer_class: str | None, prefix: str) -> None:
    for key in _OPTIMIZER_KEYS:
        state = _take(dict(rest), key)
        if not is_optimizer_state(state):
            continue
        if optimizer_class is not None:
            tensors = dict(found.tensors)
            encoded = encode_optimizer(state, optimizer_class, "optimizer", tensors, strip_prefix=prefix)
            if encoded is not None:
                _take(rest, key)
                found.values["optimizer"], found.tensors = encoded, tensors
                return
        name = _extra_name(key.partition(".")[0] if key not in rest else key, rest)
        found.notes.append(_optimizer_note(name, is_class_known=optimizer_class is not None))
        return


def _optimizer_note(name: str, *, is_class_known: bool) -> str:
    why = (
        "its parameters are numbered, not named"
        if is_class_known
        else "the file does not say its class (give --optimizer-class AdamW, or whichever it is)"
    )
    return f"The optimizer's state is kept as the extra {name!r}, for load_latest to give back: {why}."


def _extra(name: str, value: Any, origin: Mapping[str, Any], found: SortedState) -> dict[str, Any]:
    kind = origin.get("extra_kinds", {}).get(name, "value")
    prefix = f"extra.{name}"
    if kind == "module" and isinstance(value, Mapping):
        return {"kind": kind, "value": capture_module(value, prefix, found.tensors, CaptureCache())}
    if kind == "optimizer" and is_optimizer_state(value):
        encoded = encode_optimizer(value, origin["optimizer_classes"][name], prefix, found.tensors)
        if encoded is not None:
            return {"kind": kind, "value": encoded}
    known = kind if kind == "object" else "value"
    return {"kind": known, "value": encode_tree(value, prefix, found.tensors)}


def _take_step(rest: dict[str, Any]) -> int | None:
    step = rest.get("step")
    if type(step) is not int or step < 0:
        return None
    del rest["step"]
    return step
