"""An optimizer's state keeps every bit in each form that others know, and comes back from each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from production_ml.fault_tolerance.interchange.optimizer_forms import (
    by_name,
    by_number,
    encode_optimizer,
    is_optimizer_state,
)


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """Of two groups; the state of one parameter is not there, as it had no gradient."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    groups = [
        {"params": [("0.weight", model[0].weight), ("0.bias", model[0].bias)], "lr": 0.5},
        {"params": [("1.weight", model[1].weight), ("1.bias", model[1].bias)]},
    ]
    optimizer = torch.optim.AdamW(groups)
    model[1].bias.requires_grad_(False)
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    return optimizer


def encoded_of(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensors: dict[str, torch.Tensor] = {}
    encoded = encode_optimizer(state, "AdamW", "optimizer", tensors)
    assert encoded is not None
    return encoded, tensors


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["param_groups"] == expected["param_groups"]
    assert set(found["state"]) == set(expected["state"])
    for key, items in expected["state"].items():
        assert set(found["state"][key]) == set(items)
        assert all(torch.equal(found["state"][key][name], value) for name, value in items.items())


def test_the_form_by_number_is_what_torch_saves(optimizer):
    state = optimizer.state_dict()

    assert_same(by_number(*encoded_of(state)), state)
    assert 3 not in state["state"]


def test_the_form_by_name_is_what_dcp_saves_and_comes_back_as_the_one_by_number(optimizer):
    encoded, tensors = encoded_of(optimizer.state_dict())

    named = by_name(encoded, tensors)

    assert set(named["state"]) == {"0.weight", "0.bias", "1.weight"}
    assert named["param_groups"][0]["params"] == ["0.weight", "0.bias"]
    assert_same(by_number(*encoded_of(named)), optimizer.state_dict())


def test_the_form_by_name_has_the_keys_that_dcp_gives_for_the_same_optimizer():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.named_parameters())
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()

    named = by_name(*encoded_of(optimizer.state_dict()))
    of_dcp = get_optimizer_state_dict(model, optimizer)

    assert {name: set(items) for name, items in named["state"].items()} == {
        name: set(items) for name, items in of_dcp["state"].items()
    }
    assert named["param_groups"][0]["params"] == of_dcp["param_groups"][0]["params"]


def test_where_parameters_have_no_names_there_is_no_form_by_name():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], momentum=0.9)

    assert encode_optimizer(optimizer.state_dict(), "SGD", "optimizer", {}) is None


def test_state_of_a_parameter_that_no_group_has_is_not_taken_over(optimizer):
    state = optimizer.state_dict()
    state["state"][99] = state["state"][0]

    assert encode_optimizer(state, "AdamW", "optimizer", {}) is None


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ({"state": {}, "param_groups": [{"params": []}]}, True),
        ({"state": {}, "param_groups": [{}]}, False),
        ({"state": [], "param_groups": []}, False),
        ({"state": {}}, False),
        ([], False),
    ],
)
def test_an_optimizers_state_is_known_by_its_looks(value, is_one):
    assert is_optimizer_state(value) is is_one
