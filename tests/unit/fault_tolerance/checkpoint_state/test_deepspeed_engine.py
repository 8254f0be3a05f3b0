"""An engine is saved as the plain module and the plain optimizer that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache
from production_ml.fault_tolerance.checkpoint_state.deepspeed_engine import capture_engine, check_is_own

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_the_masters_are_the_model_and_not_the_weights_that_are_their_rounding(engine):
    pieces = {}

    model, _, _ = capture_engine(engine, {}, pieces, CaptureCache())

    assert list(model) == NAMES
    saved = torch.cat([piece.data.view(-1) for piece in pieces.values() if piece.name == "model.0.weight"])
    assert torch.equal(saved, engine.optimizer.single_partition_of_fp32_groups[0].detach()[:6])
    assert not torch.equal(saved, engine.module[0].weight.detach().float().view(-1))


def test_the_optimizer_is_the_plain_one_with_the_models_names(engine):
    tensors, pieces = {}, {}

    _, optimizer, own = capture_engine(engine, tensors, pieces, CaptureCache())

    assert optimizer["class"] == "AdamW"
    [group] = optimizer["groups"]
    assert (group["params"], group["options"]["lr"]) == (NAMES, 0.1)
    assert "params" not in group["options"]
    assert tensors["optimizer.step.1.bias"].item() == 2
    assert {"optimizer.exp_avg.0.weight", "optimizer.exp_avg_sq.1.bias"} <= {piece.name for piece in pieces.values()}
    assert own["counters"] == {"global_steps": 2}


def test_a_second_capture_holds_what_a_step_has_changed(engine):
    cache = CaptureCache()
    capture_engine(engine, {}, {}, cache)
    engine.step()
    tensors, pieces = {}, {}

    capture_engine(engine, tensors, pieces, cache)

    assert tensors["optimizer.step.0.weight"].item() == 3
    last = next(piece.data for piece in pieces.values() if piece.name == "model.1.bias")
    assert torch.equal(last, engine.optimizer.single_partition_of_fp32_groups[0].detach()[-1:])


def test_state_that_is_neither_for_each_element_nor_for_all_is_refused_by_name(engine):
    [state] = engine.optimizer.optimizer.state.values()
    state["rows"] = torch.zeros(3)

    with pytest.raises(CheckpointWriteError, match=r"optimizer\.rows\.0\.weight has 3 elements for 11"):
        capture_engine(engine, {}, {}, CaptureCache())


def test_an_optimizer_that_is_not_the_engines_own_is_refused(engine):
    check_is_own(engine, None)
    check_is_own(engine, engine.optimizer)
    check_is_own(engine, engine.optimizer.optimizer)

    with pytest.raises(ConfigError, match=r"Pass engine\.optimizer"):
        check_is_own(engine, torch.optim.SGD(nn.Linear(1, 1).parameters()))
