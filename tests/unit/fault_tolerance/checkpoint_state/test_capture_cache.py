"""A second capture is the first over again where nothing changed, and sees whatever did change."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache


@pytest.fixture
def cached(trained):
    """Captures of one training, which its cache has seen once."""
    cache = CaptureCache()

    def again(model=trained[0], optimizer=trained[1], **extra):
        return capture(model, optimizer, extra, cache=cache)

    again()
    return again


def assert_as_without_cache(found, model, optimizer, **extra) -> None:
    expected = capture(model, optimizer, extra)
    assert found.values == expected.values
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name] is tensor, name


def test_where_only_values_changed_the_layout_is_the_same(cached, trained, step_once):
    before = cached()

    step_once(*trained)
    after = cached()

    assert after.layout is before.layout
    assert_as_without_cache(after, *trained)


def swap_data(model, optimizer):
    model[0].weight.data = model[0].weight.data.clone()


def turn_in_place(model, optimizer):
    model.square.data = model.square.data.t()


def replace_parameter(model, optimizer):
    model[0].bias = nn.Parameter(torch.zeros(5))


def replace_state(model, optimizer):
    optimizer.state[model[0].weight]["exp_avg"] = torch.zeros(5, 3)


def forget_state(model, optimizer):
    optimizer.state.clear()


def forget_one(model, optimizer):
    del optimizer.state[model[0].weight]["exp_avg_sq"]


def add_buffer(model, optimizer):
    model.register_buffer("count", torch.zeros(()))


@pytest.mark.parametrize(
    "change",
    [
        swap_data,
        turn_in_place,
        replace_parameter,
        replace_state,
        forget_state,
        forget_one,
        add_buffer,
    ],
)
def test_every_change_of_place_or_memory_is_seen(cached, trained, change):
    trained[0].square = nn.Parameter(torch.arange(4.0).reshape(2, 2))
    before = cached()

    change(*trained)
    after = cached()

    assert after.layout is not before.layout
    assert_as_without_cache(after, *trained)
    assert cached().layout is after.layout


def test_a_learning_rate_is_taken_anew_each_time(cached, trained):
    trained[1].param_groups[0]["lr"] = 0.125
    trained[1].param_groups[0]["beta"] = torch.tensor(0.5)

    found = cached()

    assert found.values["optimizer"]["groups"][0]["options"]["lr"] == 0.125
    assert_as_without_cache(found, *trained)


def test_a_group_that_is_added_is_there_at_once(cached, trained):
    trained[1].add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})

    assert_as_without_cache(cached(), *trained)


def test_another_model_and_optimizer_are_captured_as_what_they_are(cached, trained, fresh, step_once):
    other = fresh(1)
    step_once(*other)

    assert_as_without_cache(cached(*other), *other)
    assert_as_without_cache(cached(), *trained)


def test_extras_have_their_own_places(cached, trained, fresh):
    ema, other_optimizer = fresh(2)
    extra = {"ema": ema, "second": other_optimizer, "epoch": 1}
    before = cached(**extra)

    after = cached(**{**extra, "epoch": 2})

    assert after.layout is before.layout
    assert_as_without_cache(after, *trained, **{**extra, "epoch": 2})


class Counting(nn.Module):
    """Has state beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_what_a_module_keeps_beside_its_tensors_is_taken_anew(cached):
    model = Counting()
    cached(model, None)
    model.calls = 3

    assert cached(model, None).values["model"]["_extra_state"] == {"calls": 3}


class StepsInPython(torch.optim.Optimizer):
    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1000
                state["none"] = None
                state.setdefault("history", []).append(state["step"])


def test_counts_and_lists_in_an_optimizers_state_are_never_old(cached):
    model = nn.Linear(1, 1)
    optimizer = StepsInPython(model.parameters())
    for count in (1, 2, 3):
        optimizer.step()

        state = cached(model, optimizer).values["optimizer"]["state"]["weight"]

        assert state["step"] == 1000 * count
        assert len(state["history"]) == count


def test_a_state_dict_hook_has_its_say_each_time(cached):
    model = nn.Linear(1, 1)
    tensors = [torch.zeros(1), torch.ones(1)]
    model._register_state_dict_hook(lambda module, state, prefix, metadata: state.update(bias=tensors[0]))
    before = cached(model, None)
    tensors.reverse()

    after = cached(model, None)

    assert (before.tensors["model.bias"].item(), after.tensors["model.bias"].item()) == (0, 1)


def test_a_cache_keeps_no_tensor_alive(cached, trained):
    replaced = weakref.ref(trained[1].state[trained[0][0].weight]["exp_avg"])

    trained[1].state.clear()
    gc.collect()

    assert replaced() is None


def test_tensors_that_have_no_memory_of_their_own_do_not_stop_a_capture(cached, trained):
    sparse = torch.eye(2).to_sparse()

    first, second = cached(mask=sparse), cached(mask=sparse)

    assert first.layout is not second.layout
    assert second.tensors["extra.mask"] is sparse
