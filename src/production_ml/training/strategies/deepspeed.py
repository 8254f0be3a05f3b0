"""A DeepSpeed engine, whose ZeRO stage says what is in shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError


class DeepSpeedStrategy:
    """Takes an engine that `deepspeed.initialize` has made: how it is set up is the user's and DeepSpeed's matter.

    DeepSpeed is not imported here. Its own `gradient_accumulation_steps` must be 1, for the loop cuts batches itself.
    """

    exchanges_in_forward: Final = True

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:  # noqa: ARG002 - the engine has its own
        if not is_engine(model):
            raise ConfigError(
                "model",
                type(model).__name__,
                "is no DeepSpeed engine",
                cure="Give the engine: engine, optimizer, *_ = deepspeed.initialize(model=model, config=...)",
            )
        steps = cast(Any, model).gradient_accumulation_steps()
        if steps != 1:
            raise ConfigError(
                "gradient_accumulation_steps",
                steps,
                "batches are cut into pieces by the loop, and would be cut twice",
                cure="Set it to 1 in DeepSpeed's configuration.",
            )
        return model

    @contextmanager
    def accumulating(self, model: nn.Module, *, is_last: bool) -> Iterator[None]:
        cast(Any, model).set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, model: nn.Module, loss: torch.Tensor) -> None:
        cast(Any, model).backward(loss)

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG002
        cast(Any, model).step()


def is_engine(model: nn.Module) -> bool:
    """Whether `model` is a DeepSpeed engine, told without importing DeepSpeed."""
    return any(
        kind.__name__ == "DeepSpeedEngine" and kind.__module__.startswith("deepspeed.") for kind in type(model).__mro__
    )
