"""A DeepSpeed engine is known without importing DeepSpeed, and one that a checkpoint cannot hold is refused by name.

What an engine that can be held gives and takes is tested with real ones, over several ranks.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.checkpoint_state.deepspeed_partition import is_engine, is_partitioned, partition_of
from production_ml.fault_tolerance.checkpoint_state.restoring import plan_restoration


class DeepSpeedEngine(nn.Module):
    """The outside of an engine."""

    __module__ = "deepspeed.runtime.engine"

    def __init__(self, optimizer: object, **facts: object) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.optimizer = optimizer
        for name, value in facts.items():
            setattr(self, name, value)


class PipelineEngine(DeepSpeedEngine):
    pass


class DeepSpeedZeroOptimizer:
    optimizer = SimpleNamespace(param_groups=[])


class BF16_Optimizer:  # noqa: N801 - DeepSpeed's own name
    pass


def test_engines_and_what_derives_from_them_are_known_and_nothing_else_is():
    assert is_engine(DeepSpeedEngine(None))
    assert is_engine(PipelineEngine(None))
    assert not is_engine(nn.Linear(1, 1))


def test_without_zero_an_engine_is_the_plain_module_in_it():
    engine = DeepSpeedEngine(None)
    engine.optimizer = torch.optim.SGD(engine.module.parameters(), lr=0.1, momentum=0.9)

    captured = capture(engine, engine.optimizer, {})

    assert not is_partitioned(engine)
    assert list(captured.values["model"]) == ["weight", "bias"]
    assert captured.values["optimizer"]["groups"][0]["params"] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (DeepSpeedEngine(BF16_Optimizer()), "its optimizer is a BF16_Optimizer"),
        (PipelineEngine(DeepSpeedZeroOptimizer(), pipeline_parallelism=True), "it is a pipeline"),
        (DeepSpeedEngine(DeepSpeedZeroOptimizer(), has_moe_layers=True), "it has mixtures of experts"),
        (DeepSpeedEngine(DeepSpeedZeroOptimizer(), mp_world_size=2), "it splits tensors over ranks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_engine_that_a_checkpoint_cannot_hold_is_refused_by_name(engine, reason):
    with pytest.raises(CheckpointWriteError, match=f"{reason}(?s:.*)ZeRO stage 1, 2 or 3"):
        capture(engine, None, {})


def test_an_engine_as_an_extra_is_refused_with_the_cure_when_it_is_saved_and_when_it_is_loaded():
    engine = DeepSpeedEngine(DeepSpeedZeroOptimizer())
    values = {"model": {}, "optimizer": None, "extra": {"critic": {"kind": "module", "value": {}}}}
    manifest = Manifest(
        step=1, save_id="a", created_at=0.0, world_size=1, metrics={}, values=values, files={}, tensors={}
    )

    with pytest.raises(CheckpointWriteError, match=r"save\(model=engine\)"):
        capture(nn.Module(), None, {"critic": engine})
    with pytest.raises(CheckpointWriteError, match=r"load_latest\(engine\)"):
        plan_restoration(manifest, nn.Module(), None, {"critic": engine})


@pytest.mark.parametrize(("rank", "expected"), [(0, (0, 4)), (1, (4, 3)), (2, (7, 0))])
def test_padding_at_the_end_of_a_partition_is_not_part_of_the_parameter(rank, expected):
    parameter = SimpleNamespace(ds_tensor=torch.zeros(4), ds_numel=7, ds_zero_partition_rank=rank)

    assert partition_of(parameter) == expected


def test_saving_a_plain_model_does_not_import_deepspeed():
    script = (
        "import sys, torch; from production_ml.fault_tolerance.checkpoint_state import capture; "
        "capture(torch.nn.Linear(1, 1), None, {}); sys.exit('deepspeed' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
