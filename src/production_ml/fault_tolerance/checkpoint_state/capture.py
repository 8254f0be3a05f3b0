"""All that one checkpoint holds, gathered from live objects: JSON, and the tensors by name. Nothing is copied yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.state_tree import encode_tree
from production_ml.fault_tolerance.checkpoint_state.module_state import capture_module, live_state, parameter_names
from production_ml.fault_tolerance.checkpoint_state.optimizer_state import capture_optimizer

RESERVED_NAMES: Final = frozenset({"step", "metrics", "model", "optimizer"})
"""What a resume state calls its own."""


@runtime_checkable
class Stateful(Protocol):
    """An LR scheduler, a sampler, a scaler: what gives its state as plain values and takes it back."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(slots=True)
class Captured:
    """A training's state, still shared with the training."""

    values: dict[str, Any] = field(default_factory=dict)
    """JSON, in which tensors stand by name."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def capture(model: nn.Module, optimizer: Optimizer | None, extra: Mapping[str, Any]) -> Captured:
    """Gather the state of a training.

    Raises:
        CheckpointWriteError: Something in it cannot be saved.
        ConfigError: An extra has a name that a resume state uses for its own.
    """
    check_extra_names(extra)
    captured = Captured()
    live = live_state(model)
    names = parameter_names(live)
    captured.values["model"] = capture_module(live, "model", captured.tensors)
    captured.values["optimizer"] = (
        None if optimizer is None else capture_optimizer(optimizer, names, "optimizer", captured.tensors)
    )
    captured.values["extra"] = {
        name: _capture_extra(value, names, f"extra.{name}", captured.tensors) for name, value in extra.items()
    }
    return captured


def check_extra_names(extra: Mapping[str, Any]) -> None:
    """Refuse names that a resume state uses for its own.

    Raises:
        ConfigError: One of them is.
    """
    for name in sorted(RESERVED_NAMES.intersection(extra)):
        raise ConfigError(name, extra[name], "this name is taken; give the extra state another one")


def _capture_extra(
    value: Any, names: Mapping[int, str], prefix: str, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        return {"kind": "module", "value": capture_module(live_state(value), prefix, tensors)}
    if isinstance(value, Optimizer):
        return {"kind": "optimizer", "value": capture_optimizer(value, names, prefix, tensors)}
    if isinstance(value, Stateful):
        return {"kind": "object", "value": encode_tree(value.state_dict(), prefix, tensors)}
    return {"kind": "value", "value": encode_tree(value, prefix, tensors)}
