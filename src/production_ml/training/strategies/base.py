"""What a training strategy must do."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer


class TrainingStrategy(Protocol):
    """How one model is trained by all ranks together, for a loop that works the same whatever the answer is.

    A step is: for each piece of the batch, within `accumulating`, a forward and `backward`; then `step`. Every kind
    gives the gradient of the mean over ranks, so a loop that weighs its pieces by their share of the global batch
    gets the same gradient, up to rounding, from any number of ranks and pieces.
    """

    exchanges_in_forward: bool
    """Whether every forward talks to the other ranks. Then a rank that fails amid one leaves its peers waiting."""

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:
        """Spread the model, once, before the first step and before a checkpoint is loaded; returns what to call.

        Afterwards `optimizer` holds the parameters of what is returned.

        Raises:
            ConfigError: This model cannot be trained so.
        """
        ...

    def accumulating(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward of one piece of a batch: only the last one needs the peers' gradients."""
        ...

    def backward(self, model: nn.Module, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`, a tensor without dimensions."""
        ...

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Change the parameters by their gradients, and forget these."""
        ...
