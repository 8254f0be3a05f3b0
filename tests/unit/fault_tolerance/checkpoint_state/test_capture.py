"""A capture holds everything by name, and refuses what a checkpoint cannot hold."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_state.capture import capture


def test_tensors_are_named_by_what_they_belong_to(trained):
    model, optimizer = trained
    captured = capture(model, optimizer, {"seed": 3, "history": [torch.ones(2)]})

    assert {"model.0.weight", "model.1.running_mean", "optimizer.exp_avg.0.weight"} <= set(captured.tensors)
    assert captured.tensors["extra.history/0"].tolist() == [1, 1]
    json.dumps(captured.values, allow_nan=False)


def test_nothing_is_copied_yet(trained):
    model, _ = trained

    assert capture(model, None, {}).tensors["model.0.weight"].data_ptr() == model[0].weight.data_ptr()


def test_each_kind_of_extra_is_known_as_what_it_is(trained):
    model, optimizer = trained
    extra = {
        "ema": nn.Linear(1, 1),
        "second": torch.optim.SGD(model.parameters()),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "epoch": 4,
    }

    captured = capture(model, optimizer, extra)

    kinds = {name: item["kind"] for name, item in captured.values["extra"].items()}
    assert kinds == {"ema": "module", "second": "optimizer", "scheduler": "object", "epoch": "value"}


@pytest.mark.parametrize("name", ["step", "metrics", "model", "optimizer"])
def test_names_that_a_resume_state_uses_are_taken(trained, name):
    with pytest.raises(ConfigError, match=name):
        capture(*trained, {name: 1})


def test_what_cannot_be_saved_is_named(trained):
    with pytest.raises(CheckpointWriteError, match=r"extra\.loader/worker"):
        capture(*trained, {"loader": {"worker": object()}})


def test_fsdp1_is_refused_with_the_way_out():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(CheckpointWriteError, match="fully_shard"):
        capture(nn.Sequential(FullyShardedDataParallel()), None, {})
