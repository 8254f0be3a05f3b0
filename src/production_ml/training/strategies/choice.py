"""Which strategy a model asks for by what it is already."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from production_ml.core.errors import ConfigError
from production_ml.training.strategies.deepspeed import is_engine


def choose_strategy(model: nn.Module) -> str:
    """The name of the strategy for `model`.

    A model that is wrapped or sharded is taken as it is. Of another one each rank of several gets a copy (DDP): whether
    it is too large for that only its user knows.
    """
    if is_engine(model):
        return "deepspeed"
    if isinstance(model, DistributedDataParallel):
        return "ddp"
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return "fsdp"
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ConfigError(
            "model",
            type(model).__name__,
            "is tensor-parallel, and there is no strategy for that",
            cure="Train it in a loop of your own; its checkpoints work as any other's.",
        )
    is_spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return "ddp" if is_spread else "plain"
