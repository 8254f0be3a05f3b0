"""An optimizer that Accelerate has prepared is saved, held back and loaded as the one that it wraps."""

from __future__ import annotations

from pathlib import Path

import accelerate
import torch
from torch import nn

from production_ml.fault_tolerance import CheckpointManager


def test_a_prepared_training_is_saved_and_goes_on_bit_for_bit(tmp_path: Path):
    accelerator = accelerate.Accelerator(cpu=True)

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(300, 300)
        return accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        accelerator.backward(model(torch.ones(2, 300)).square().mean())
        optimizer.step()

    model, optimizer = build(0)
    with CheckpointManager(tmp_path) as manager:
        manager.load_latest(model, optimizer)
        train(model, optimizer)
        manager.save(model=model, optimizer=optimizer, step=1)
        train(model, optimizer)
        resumed, resumed_optimizer = build(1)
        assert manager.load_latest(resumed, resumed_optimizer)["step"] == 1
        train(resumed, resumed_optimizer)

    assert torch.equal(resumed.weight, model.weight)
