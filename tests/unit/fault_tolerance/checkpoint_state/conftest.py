"""What the tests of DeepSpeed engines share: an engine of ZeRO stage 1 on one rank, as far as checkpoints see it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn


class DeepSpeedZeroOptimizer:
    """Masters of all parameters in one flat tensor, which a torch optimizer steps."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.cat([parameter.detach().float().view(-1) for parameter in parameters])
        self.bit16_groups = [parameters]
        self.single_partition_of_fp32_groups = [nn.Parameter(flat)]
        self.optimizer = torch.optim.AdamW(self.single_partition_of_fp32_groups, lr=0.1)
        begin = 0
        for parameter in parameters:
            in_parameter = SimpleNamespace(start=0, numel=parameter.numel())
            in_flat = SimpleNamespace(start=begin)
            parameter._hp_mapping = SimpleNamespace(lp_fragment_address=in_parameter, hp_fragment_address=in_flat)
            begin += parameter.numel()

    def step(self) -> None:
        [flat] = self.single_partition_of_fp32_groups
        flat.grad = torch.linspace(-1, 1, flat.numel())
        self.optimizer.step()
        parts = flat.detach().split([parameter.numel() for parameter in self.bit16_groups[0]])
        with torch.no_grad():
            for parameter, part in zip(self.bit16_groups[0], parts, strict=True):
                parameter.copy_(part.view(parameter.shape))


class DeepSpeedEngine(nn.Module):
    """A bfloat16 model, its masters, and a counter."""

    __module__ = "deepspeed.runtime.engine"

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).bfloat16()
        self.optimizer = DeepSpeedZeroOptimizer(list(self.module.parameters()))
        self.lr_scheduler = None
        self.global_steps = 0

    def step(self) -> None:
        self.optimizer.step()
        self.global_steps += 1


@pytest.fixture
def engine_of() -> Callable[[int], DeepSpeedEngine]:
    """An engine by its seed."""
    return DeepSpeedEngine


@pytest.fixture
def engine() -> DeepSpeedEngine:
    """One that has been trained for two steps."""
    engine = DeepSpeedEngine(0)
    for _ in range(2):
        engine.step()
    return engine
