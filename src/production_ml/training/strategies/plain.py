"""One rank, and nothing to share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError


class PlainStrategy:
    """The model as it is."""

    exchanges_in_forward: Final = False

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:  # noqa: ARG002 - nothing to change in it
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ConfigError(
                "strategy",
                "plain",
                f"each of the {dist.get_world_size()} ranks would train a model of its own",
                cure='Choose "ddp" or "fsdp", or leave it to "auto".',
            )
        return model

    def accumulating(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def backward(self, model: nn.Module, loss: torch.Tensor) -> None:  # noqa: ARG002
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG002
        optimizer.step()
        optimizer.zero_grad()
