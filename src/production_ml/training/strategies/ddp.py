"""The whole model on every rank, gradients averaged: DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


class DDPStrategy:
    """Wraps the model in DistributedDataParallel, or takes one that the user has wrapped, with options of their own."""

    exchanges_in_forward: Final = False

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:  # noqa: ARG002 - parameters stay the same
        if isinstance(model, DistributedDataParallel):
            return model
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def accumulating(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else cast(AbstractContextManager[None], _ddp(model).no_sync())

    def backward(self, model: nn.Module, loss: torch.Tensor) -> None:  # noqa: ARG002
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG002
        optimizer.step()
        optimizer.zero_grad()


def _ddp(model: nn.Module) -> DistributedDataParallel:
    # torch.compile puts a module of its own around it.
    return cast(DistributedDataParallel, getattr(model, "_orig_mod", model))
