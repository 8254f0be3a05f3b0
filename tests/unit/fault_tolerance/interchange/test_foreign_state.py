"""What others saved is sorted by what it is, and nothing is lost without a word."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, sort_state

W = torch.ones(2)
NUMBERED = {"state": {0: {"exp_avg": W}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
NAMED = {"state": {"w": {"exp_avg": W}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]}


@pytest.mark.parametrize(
    "state",
    [
        {"w": W},
        {"model": {"w": W}},
        {"model_state_dict": {"w": W}},
        {"state_dict": {"w": W}},
        {"app": {"model": {"w": W}}},
    ],
)
def test_the_model_is_found_where_people_keep_it(state):
    found = sort_state(state, ImportConfig())

    assert found.values["model"] == {"w": {"$tensor": "model.w"}}
    assert found.values["extra"] == {}
    assert found.tensors == {"model.w": W}


def test_a_model_kept_elsewhere_is_found_by_its_key():
    found = sort_state({"nets": {"student": {"w": W}}, "model": {"v": W}}, ImportConfig(model_key="nets.student"))

    assert list(found.values["model"]) == ["w"]
    assert list(found.values["extra"]) == ["model_state"]


def test_a_model_that_cannot_be_found_is_asked_for():
    with pytest.raises(ConfigError, match=r"found: epoch, net.*\n.*--model-key"):
        sort_state({"net": {"w": W}, "epoch": 3}, ImportConfig())


def test_a_prefix_is_taken_off():
    found = sort_state({"model": {"module.w": W}}, ImportConfig(strip_prefix="module."))

    assert list(found.values["model"]) == ["w"]


def test_an_optimizer_of_known_names_and_class_is_one():
    found = sort_state({"model": {"w": W}, "optimizer": NAMED}, ImportConfig(optimizer_class="Adam"))

    assert found.values["optimizer"]["class"] == "Adam"
    assert found.values["optimizer"]["state"] == {"w": {"exp_avg": {"$tensor": "optimizer.exp_avg.w"}}}
    assert found.notes == []


@pytest.mark.parametrize(
    ("optimizer", "given", "why"), [(NAMED, None, "--optimizer-class"), (NUMBERED, "Adam", "numbered, not named")]
)
def test_an_optimizer_that_cannot_be_one_is_an_extra_and_the_reason_is_told(optimizer, given, why):
    found = sort_state({"model": {"w": W}, "optimizer": optimizer}, ImportConfig(optimizer_class=given))

    assert found.values["optimizer"] is None
    assert list(found.values["extra"]) == ["optimizer_state"]
    [note] = found.notes
    assert why in note


def test_step_and_metrics_are_taken_and_the_rest_are_extras():
    state = {"model": {"w": W}, "step": 7, "metrics": {"loss": 0.5}, "epoch": 2, "scheduler": {"last_epoch": 2}}

    found = sort_state(state, ImportConfig())

    assert (found.step, found.metrics) == (7, {"loss": 0.5})
    assert found.values["extra"]["epoch"] == {"kind": "value", "value": 2}
    assert list(found.values["extra"]) == ["epoch", "scheduler"]


def test_the_model_alone_leaves_out_what_could_not_be_saved():
    state = {"model": {"w": W}, "odd": object()}

    assert list(sort_state(state, ImportConfig(model_only=True)).tensors) == ["model.w"]
    with pytest.raises(CheckpointWriteError, match=r"extra\.odd"):
        sort_state(state, ImportConfig())


def test_a_prefix_is_taken_off_the_optimizer_s_names_too():
    named = {"state": {0: {"exp_avg": W}}, "param_groups": [{"params": [0], "param_names": ["module.w"]}]}
    config = ImportConfig(strip_prefix="module.", optimizer_class="Adam")

    found = sort_state({"model": {"module.w": W}, "optimizer": named}, config)

    assert list(found.values["optimizer"]["state"]) == list(found.values["model"]) == ["w"]
    assert found.values["optimizer"]["groups"][0]["params"] == ["w"]


def test_a_prefix_that_would_make_two_names_one_is_refused():
    with pytest.raises(ConfigError, match="two names would become one"):
        sort_state({"model": {"module.w": W, "w": W}}, ImportConfig(strip_prefix="module."))


def test_two_parts_never_become_one_extra():
    state = {"net": {"w": W}, "model": "a name", "model_state": "a state"}

    found = sort_state(state, ImportConfig(model_key="net"))

    assert {extra["value"] for extra in found.values["extra"].values()} == {"a name", "a state"}


def test_the_note_of_an_optimizer_names_the_extra_that_it_is_in():
    found = sort_state({"app": {"model": {"w": W}, "optim": NUMBERED}}, ImportConfig())

    assert list(found.values["extra"]) == ["app"]
    assert "as the extra 'app'" in found.notes[0]


@pytest.mark.parametrize("origin", ["{", "3", "{}", '{"optimizer_classes": 3}', '{"extra_kinds": {"x": "optimizer"}}'])
def test_another_tool_s_word_about_the_origin_does_no_harm(origin):
    found = sort_state({"model": {"w": W}, "x": NAMED, "production_ml": origin}, ImportConfig())

    assert list(found.values["extra"]) == ["x"]
    assert found.values["extra"]["x"]["kind"] == "value"
