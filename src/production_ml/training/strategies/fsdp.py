"""The model in shards, gathered layer by layer: FSDP2 (`fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError


class FSDPStrategy:
    """Shards the model with `fully_shard`, or takes one that the user has sharded, with a mesh and policy of their own.

    What it shards itself is cut at the elements of every `nn.ModuleList` and `nn.Sequential` that hold parameters,
    the layers of most models, and then as a whole.
    """

    exchanges_in_forward: Final = True

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            return model
        if optimizer.state:
            raise ConfigError(
                "optimizer",
                type(optimizer).__name__,
                "has stepped already; its state belongs to parameters that sharding replaces",
                cure="Shard before the first step, or give a model that fully_shard has been called on.",
            )
        before = dict(model.named_parameters(remove_duplicate=False))
        for layer in _layers(model):
            fully_shard(layer)
        fully_shard(model)
        after = dict(model.named_parameters(remove_duplicate=False))
        _point_to(optimizer, {id(old): after[name] for name, old in before.items()})
        return model

    @contextmanager
    def accumulating(self, model: nn.Module, *, is_last: bool) -> Iterator[None]:
        _set_sync(model, is_on=is_last)
        try:
            yield
        finally:
            _set_sync(model, is_on=True)

    def backward(self, model: nn.Module, loss: torch.Tensor) -> None:  # noqa: ARG002
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG002
        optimizer.step()
        optimizer.zero_grad()


def _layers(model: nn.Module) -> list[nn.Module]:
    containers = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    layers = [layer for container in containers for layer in container if any(True for _ in layer.parameters())]
    # A layer that is itself a list has no forward to gather before; one that stands in two lists is sharded once.
    alone = {id(layer): layer for layer in layers if not isinstance(layer, nn.ModuleList) and layer is not model}
    # Inner ones first: what encloses them takes only what is left.
    return list(reversed(alone.values()))


def _point_to(optimizer: Optimizer, parameters: dict[int, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [parameters.get(id(old), old) for old in group["params"]]


def _set_sync(model: nn.Module, *, is_on: bool) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(is_on, recurse=False)
