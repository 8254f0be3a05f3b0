"""All that one checkpoint holds, gathered from live objects: JSON, and the tensors by name. Nothing is copied yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.boxes import whole
from production_ml.fault_tolerance.checkpoint_format.pieces import Piece
from production_ml.fault_tolerance.checkpoint_format.state_tree import encode_tree
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache, Layout
from production_ml.fault_tolerance.checkpoint_state.deepspeed_engine import capture_engine, check_is_own
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import is_engine, is_partitioned
from production_ml.fault_tolerance.checkpoint_state.module_state import capture_module, live_state, parameter_names
from production_ml.fault_tolerance.checkpoint_state.optimizer_state import capture_optimizer
from production_ml.fault_tolerance.checkpoint_state.per_rank import capture_rank_state, is_per_rank
from production_ml.fault_tolerance.checkpoint_state.stateful import Stateful

RESERVED_NAMES: Final = frozenset({"step", "metrics", "model", "optimizer"})
"""What a resume state calls its own."""


@dataclass(slots=True)
class Captured:
    """A training's state, still shared with the training."""

    values: dict[str, Any] = field(default_factory=dict)
    """JSON, in which tensors stand by name."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rank_values: dict[str, Any] = field(default_factory=dict)
    """JSON of what differs by rank."""
    rank_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Plain tensors that this rank alone writes, as `rank-<rank>.…`; they are new at each capture."""
    pieces: dict[str, Piece] = field(default_factory=dict)
    """Boxes of whole tensors that this rank alone holds and writes, by the key to write them under (DeepSpeed)."""
    layout: Layout = field(default_factory=Layout)
    """The same object as at the capture before where nothing of `tensors` but their values has changed since."""

    def own_pieces(self) -> dict[str, Piece]:
        """All that this rank writes whatever its number is, by the key to write it under."""
        plain = {
            name: Piece(name, tuple(tensor.shape), whole(tuple(tensor.shape)), tensor)
            for name, tensor in self.rank_tensors.items()
        }
        return {**self.pieces, **plain}


def capture(
    model: nn.Module,
    optimizer: Optimizer | None,
    extra: Mapping[str, Any],
    *,
    rank: int = 0,
    random_state: bool = True,
    cache: CaptureCache | None = None,
) -> Captured:
    """Gather the state of a training.

    Args:
        model: The model; a DeepSpeed engine brings its own optimizer.
        optimizer: Its optimizer, if there is one.
        extra: Whatever else is saved, by name.
        rank: This rank.
        random_state: Save the random generators of this rank too.
        cache: What was captured before; a training's second save is much faster with it.

    Raises:
        CheckpointWriteError: Something in it cannot be saved.
        ConfigError: An extra has a name that a resume state uses for its own.
    """
    check_extra_names(extra)
    cache = CaptureCache() if cache is None else cache
    captured = Captured()
    tensors = captured.tensors
    if is_engine(model) and is_partitioned(model):
        check_is_own(model, optimizer)
        names: Mapping[int, str] = {}
        of_model, of_optimizer, of_engine = capture_engine(model, tensors, captured.pieces, cache)
        captured.values.update(model=of_model, optimizer=of_optimizer, engine=of_engine)
    else:
        live = live_state(model)
        names = parameter_names(live)
        captured.values["model"] = capture_module(live, "model", tensors, cache)
        captured.values["optimizer"] = (
            None if optimizer is None else capture_optimizer(optimizer, names, "optimizer", tensors, cache)
        )
    captured.values["extra"] = {
        name: _capture_extra(value, names, f"extra.{name}", tensors, cache)
        for name, value in extra.items()
        if not is_per_rank(value)
    }
    captured.rank_values, captured.rank_tensors = capture_rank_state(extra, rank=rank, random_state=random_state)
    captured.layout = cache.layout_of(tensors)
    return captured


def check_extra_names(extra: Mapping[str, Any]) -> None:
    """Refuse names that a resume state uses for its own.

    Raises:
        ConfigError: One of them is.
    """
    for name in sorted(RESERVED_NAMES.intersection(extra)):
        raise ConfigError(name, extra[name], "this name is taken; give the extra state another one")


def _capture_extra(
    value: Any, names: Mapping[int, str], prefix: str, tensors: dict[str, torch.Tensor], cache: CaptureCache
) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        return {"kind": "module", "value": capture_module(live_state(value), prefix, tensors, cache)}
    if isinstance(value, Optimizer):
        return {"kind": "optimizer", "value": capture_optimizer(value, names, prefix, tensors, cache)}
    if isinstance(value, Stateful):
        return {"kind": "object", "value": encode_tree(value.state_dict(), prefix, tensors)}
    return {"kind": "value", "value": encode_tree(value, prefix, tensors)}
