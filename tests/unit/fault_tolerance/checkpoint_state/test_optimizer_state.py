"""An optimizer goes on as if it had never stopped, and nothing of it is touched where it does not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache
from production_ml.fault_tolerance.checkpoint_state.module_state import live_state, parameter_names
from production_ml.fault_tolerance.checkpoint_state.optimizer_state import OptimizerRestoration, capture_optimizer

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1), weight_decay=0.05),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, momentum=0.9, centered=True),
}


def names_of(model: nn.Module) -> dict[int, str]:
    return parameter_names(live_state(model))


def saved(optimizer, names):
    tensors: dict[str, torch.Tensor] = {}
    encoded = capture_optimizer(optimizer, names, "optimizer", tensors, CaptureCache())
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return encoded, copies


def plan(optimizer, names, encoded, tensors) -> OptimizerRestoration:
    entries = {
        name: TensorEntry(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), chunks=())
        for name, tensor in tensors.items()
    }
    return OptimizerRestoration(optimizer, "the optimizer", names, encoded, entries)


def move(source, source_model, target, target_model) -> None:
    encoded, tensors = saved(source, names_of(source_model))
    plan(target, names_of(target_model), encoded, tensors).apply(tensors)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_as_if_it_had_not_stopped(kind):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = OPTIMIZERS[kind](model.parameters())
    steps(model, optimizer, 3)
    resumed_model = copy.deepcopy(model)
    resumed = OPTIMIZERS[kind](resumed_model.parameters())
    move(optimizer, model, resumed, resumed_model)

    steps(model, optimizer, 2)
    steps(resumed_model, resumed, 2)

    for one, other in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_each_group_gets_its_own_options_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def build(lr: float) -> torch.optim.Optimizer:
        groups = [{"params": model[0].parameters(), "lr": lr}, {"params": model[1].parameters(), "betas": (0.5, 0.6)}]
        return torch.optim.AdamW(groups, lr=lr * 2)

    source, target = build(0.3), build(0.1)
    source.param_groups[1]["custom"] = "kept"
    move(source, model, target, model)

    assert [group["lr"] for group in target.param_groups] == [0.3, 0.6]
    assert target.param_groups[1]["betas"] == (0.5, 0.6)
    assert target.param_groups[1]["custom"] == "kept"


def test_another_order_of_the_parameters_does_not_mix_their_state():
    model = nn.Linear(3, 3)
    source = torch.optim.SGD([model.weight, model.bias], lr=0.1, momentum=0.9)
    steps(model, source, 1)
    target = torch.optim.SGD([model.bias, model.weight], lr=0.1, momentum=0.9)

    move(source, model, target, model)

    for parameter in model.parameters():
        one, other = source.state[parameter]["momentum_buffer"], target.state[parameter]["momentum_buffer"]
        assert torch.equal(one, other)


def test_an_optimizer_that_has_not_stepped_is_not_stepped_to_save_it():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model.state_dict())

    encoded, tensors = saved(optimizer, names_of(model))

    assert encoded["state"] == {}
    assert tensors == {}
    assert not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_from_before_the_first_step_clears_what_a_later_one_had():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    encoded, tensors = saved(optimizer, names_of(model))
    steps(model, optimizer, 1)

    plan(optimizer, names_of(model), encoded, tensors).apply(tensors)

    assert not optimizer.state


class Float32Moments(torch.optim.Optimizer):
    """Keeps float32 state for bfloat16 weights, as many mixed-precision optimizers do."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("moment", torch.full(parameter.shape, 1 / 3))


def test_float32_moments_of_bfloat16_weights_keep_every_bit():
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    source, target = Float32Moments(model.parameters()), Float32Moments(model.parameters())
    source.step()

    move(source, model, target, model)

    found = target.state[model.weight]["moment"]
    assert found.dtype == torch.float32
    assert torch.equal(found, source.state[model.weight]["moment"])


def test_a_parameter_outside_the_model_is_known_by_its_place():
    model, temperature = nn.Linear(3, 3), nn.Parameter(torch.ones(()))
    source = torch.optim.SGD([*model.parameters(), temperature], lr=0.1, momentum=0.9)
    temperature.grad = torch.tensor(2.0)
    source.step()

    encoded, tensors = saved(source, names_of(model))

    assert encoded["groups"][0]["params"] == ["weight", "bias", "#0.2"]
    assert tensors["optimizer.momentum_buffer.#0.2"] == 2.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda model: torch.optim.SGD(model.parameters()), "the state of AdamW, but the optimizer is SGD"),
        (lambda model: torch.optim.AdamW([model.weight]), r"group 0.*'bias'"),
        (
            lambda model: torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias]}]),
            "has 2 parameter groups, but 1 in the checkpoint",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused_when_the_plan_is_made(build, message):
    model = nn.Linear(3, 3)
    source = torch.optim.AdamW(model.parameters())
    steps(model, source, 1)
    encoded, tensors = saved(source, names_of(model))

    with pytest.raises(CheckpointMismatchError, match=message):
        plan(build(model), names_of(model), encoded, tensors)
