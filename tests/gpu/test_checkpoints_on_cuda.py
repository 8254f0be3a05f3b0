"""Checkpoints of models on a GPU. Run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.fault_tolerance import CheckpointManager

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("These tests need a CUDA device; leave them out with: pytest -m 'not gpu'")
    return torch.device("cuda")


def trained(device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model on `device` whose optimizer has state."""
    model = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 8)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, device)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    optimizer.zero_grad()
    model(torch.randn(64, 512, device=device)).square().mean().backward()
    optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [value for held in optimizer.state.values() for value in held.values()]
    return [tensor.detach().cpu().clone() for tensor in (*model.state_dict().values(), *moments)]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_saved_is_the_state_at_the_call_though_training_goes_on_at_once(device: torch.device, tmp_path: Path):
    model, optimizer = trained(device)
    with CheckpointManager(tmp_path, keep_last_n=20, save_best=False) as checkpoints:
        expected = []
        for number in range(10):
            expected.append(state(model, optimizer))
            checkpoints.save(model=model, optimizer=optimizer, step=number)
            step(model, optimizer, device)  # queued behind the copies, on the same stream

    for number in reversed(range(10)):
        other, other_optimizer = trained(device)
        found = CheckpointManager(tmp_path).load_latest(other, other_optimizer)
        assert found["step"] == number
        assert_equal(state(other, other_optimizer), expected[number])
        (tmp_path / f"step-{number:08d}").rename(tmp_path.with_name(f"seen-{number}"))


def test_a_checkpoint_of_a_gpu_loads_on_the_cpu_and_back(device: torch.device, tmp_path: Path):
    model, optimizer = trained(device)
    with CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(model=model, optimizer=optimizer, step=1, metrics={"loss": torch.ones((), device=device)})
    on_cpu, cpu_optimizer = trained(torch.device("cpu"))

    assert CheckpointManager(tmp_path).load_latest(on_cpu, cpu_optimizer)["metrics"] == {"loss": 1.0}

    assert_equal(state(on_cpu, cpu_optimizer), state(model, optimizer))
    assert all(tensor.device.type == "cpu" for tensor in on_cpu.state_dict().values())
