"""What a training holds beside model and optimizer goes on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from production_ml.fault_tolerance import CheckpointManager


def halved(epoch: int) -> float:
    return 0.5**epoch


class Warmup:
    """A callable object, whose own numbers LambdaLR saves."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 1 / (1 + self.calls)


def sequential(optimizer):
    parts = [lrs.LinearLR(optimizer, total_iters=3), lrs.CosineAnnealingLR(optimizer, T_max=5)]
    return lrs.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULERS = {
    "step": lambda optimizer: lrs.StepLR(optimizer, 2),
    "multi-step": lambda optimizer: lrs.MultiStepLR(optimizer, [2, 5]),
    "constant": lambda optimizer: lrs.ConstantLR(optimizer, total_iters=4),
    "linear": lambda optimizer: lrs.LinearLR(optimizer, total_iters=5),
    "exponential": lambda optimizer: lrs.ExponentialLR(optimizer, 0.9),
    "polynomial": lambda optimizer: lrs.PolynomialLR(optimizer, total_iters=8, power=2.0),
    "cosine": lambda optimizer: lrs.CosineAnnealingLR(optimizer, T_max=6),
    "warm restarts": lambda optimizer: lrs.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2),
    "plateau": lambda optimizer: lrs.ReduceLROnPlateau(optimizer, patience=1, cooldown=1),
    "one cycle": lambda optimizer: lrs.OneCycleLR(optimizer, max_lr=0.5, total_steps=20),
    "cyclic": lambda optimizer: lrs.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=3, mode="exp_range"),
    "lambda": lambda optimizer: lrs.LambdaLR(optimizer, halved),
    "callable": lambda optimizer: lrs.LambdaLR(optimizer, Warmup()),
    "multiplicative": lambda optimizer: lrs.MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "sequential": sequential,
    "chained": lambda optimizer: lrs.ChainedScheduler(
        [lrs.ConstantLR(optimizer, total_iters=4), lrs.ExponentialLR(optimizer, 0.9)], optimizer=optimizer
    ),
    "swa": lambda optimizer: SWALR(optimizer, swa_lr=0.01, anneal_epochs=6),
}


def build(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def train(model, optimizer, scheduler, losses) -> list[float]:
    """Some steps; gives the learning rate of each."""
    rates = []
    for loss in losses:
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        scheduler.step(*([loss] if isinstance(scheduler, lrs.ReduceLROnPlateau) else []))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_learning_rate_schedule_goes_on_bit_for_bit(tmp_path, kind):
    model, optimizer = build(0)
    scheduler = SCHEDULERS[kind](optimizer)
    train(model, optimizer, scheduler, [3.0, 2.0, 2.0, 2.0])
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=model, optimizer=optimizer, step=4, scheduler=scheduler)
        torch.manual_seed(7)
        expected = train(model, optimizer, scheduler, [2.0, 1.0, 1.0, 1.0, 1.0])

        resumed, resumed_optimizer = build(1)
        resumed_scheduler = SCHEDULERS[kind](resumed_optimizer)
        manager.load_latest(resumed, resumed_optimizer, scheduler=resumed_scheduler)
    torch.manual_seed(7)
    found = train(resumed, resumed_optimizer, resumed_scheduler, [2.0, 1.0, 1.0, 1.0, 1.0])

    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_gradient_scaler_keeps_its_scale_and_its_count_of_good_steps(tmp_path):
    model, optimizer = build(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    def scaled_step(model, optimizer, scaler) -> float:
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale()

    for _ in range(2):
        scaled_step(model, optimizer, scaler)
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=model, optimizer=optimizer, step=2, scaler=scaler)
        resumed, resumed_optimizer = build(1)
        resumed_scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        manager.load_latest(resumed, resumed_optimizer, scaler=resumed_scaler)

    scales = [scaled_step(resumed, resumed_optimizer, resumed_scaler) for _ in range(4)]

    assert scales == [scaled_step(model, optimizer, scaler) for _ in range(4)]
    assert scales == [2048.0, 2048.0, 2048.0, 4096.0]


@pytest.mark.parametrize("kind", ["mean", "ema"])
def test_an_averaged_model_goes_on_averaging(tmp_path, kind):
    averaging = {"mean": {}, "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True}}[kind]
    model, optimizer = build(0)
    averaged = AveragedModel(model, **averaging)

    def step(model, optimizer, averaged):
        torch.manual_seed(3)
        train(model, optimizer, lrs.StepLR(optimizer, 100), [1.0])
        averaged.update_parameters(model)

    for _ in range(2):
        step(model, optimizer, averaged)
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=model, optimizer=optimizer, step=2, ema=averaged)
        resumed, resumed_optimizer = build(1)
        resumed_averaged = AveragedModel(resumed, **averaging)
        manager.load_latest(resumed, resumed_optimizer, ema=resumed_averaged)
    for _ in range(2):
        step(model, optimizer, averaged)
        step(resumed, resumed_optimizer, resumed_averaged)

    assert resumed_averaged.n_averaged == averaged.n_averaged == 4
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), resumed_averaged.parameters(), strict=True))


class Sampler:
    """A shuffled order of data with a position, of the kind that torchdata has: a generator, a seed, a list."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.numpy = np.random.default_rng(seed)
        self.python = random.Random(seed)
        self.order: list[int] = []
        self.position = 0

    def draw(self) -> tuple[int, float, float]:
        if self.position == len(self.order):
            self.order, self.position = torch.randperm(5, generator=self.generator).tolist(), 0
        self.position += 1
        return self.order[self.position - 1], self.numpy.random(), self.python.random()

    def state_dict(self):
        return {
            "order": self.order,
            "position": self.position,
            "generator": self.generator.get_state(),
            "numpy": self.numpy.bit_generator.state,
            "python": self.python.getstate(),
        }

    def load_state_dict(self, state) -> None:
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])
        self.numpy.bit_generator.state = state["numpy"]
        self.python.setstate(state["python"])


def test_the_order_of_data_goes_on_where_it_was(tmp_path):
    sampler, resumed = Sampler(1), Sampler(2)
    model, _ = build(0)
    for _ in range(7):
        sampler.draw()
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=model, step=7, sampler=sampler)
        expected = [sampler.draw() for _ in range(12)]

        manager.load_latest(model, sampler=resumed)

    assert [resumed.draw() for _ in range(12)] == expected


class Odd(nn.Module):
    """Parameters and buffers of every type and stride that a module may have."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def filled(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        nn.init.constant_(self.conv.weight, seed + 1)
        self.turned = nn.Parameter(filled(3, 5).t())
        self.wave = nn.Parameter(torch.complex(filled(2, 2), filled(2, 2)))
        self.scalar = nn.Parameter(filled(1)[0].clone())
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.brief = nn.Parameter(filled(3).bfloat16())
        self.tied = self.turned
        self.register_buffer("mask", filled(4) > 0)
        self.register_buffer("count", torch.tensor(seed, dtype=torch.int16))
        self.register_buffer("small", filled(4).to(torch.float8_e4m3fn))
        self.register_buffer("every_other", filled(8)[::2])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_module_of_odd_tensors_comes_back_with_its_types_and_strides(tmp_path):
    source, target = Odd(1), Odd(2)
    strides = {name: value.stride() for name, value in target.state_dict().items()}

    with CheckpointManager(tmp_path) as manager:
        manager.save(model=source, step=1)
        manager.load_latest(target)

    for name, value in source.state_dict().items():
        found = target.state_dict()[name]
        assert bits(found) == bits(value), name
        assert (found.dtype, found.stride()) == (value.dtype, strides[name])
    assert target.tied is target.turned
