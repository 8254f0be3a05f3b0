"""Each part of a checkpoint has the name that DCP would have given it."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from production_ml.fault_tolerance.interchange.dcp_names import named_state, values_of
from production_ml.fault_tolerance.interchange.source import CheckpointSource


def test_a_training_s_checkpoint_has_the_names_of_the_state_dicts_that_dcp_loads_into(saved, training):
    named = named_state(saved.manifest(300))

    assert {f"model.{name}" for name in training[0].state_dict()} <= set(named.tensors)
    assert named.tensors["optimizer.state.0.weight.exp_avg"] == "optimizer.exp_avg.0.weight"
    assert named.paths["optimizer.state.0.weight.exp_avg"] == ("optimizer", "state", "0.weight", "exp_avg")
    assert (named.objects["step"], named.objects["metrics.loss"], named.objects["epoch"]) == (300, 0.25, 3)


def test_a_value_comes_with_the_tensors_in_it(saved):
    named = named_state(saved.manifest(300))

    with CheckpointSource(saved, 300) as source:
        ones, letter = named.object("pair", source)

    assert torch.equal(ones, torch.ones(2))
    assert letter == "a"


@pytest.mark.parametrize(
    ("paths", "objects", "model"),
    [
        ({"model.w": ("model", "w"), "epoch": ("epoch",)}, {"epoch": 3}, {"w": {"$tensor": "model.w"}}),
        ({"model.w": ("model", "w"), "model.n": ("model", "n")}, {"model.n": 3}, {"w": {"$tensor": "model.w"}, "n": 3}),
        ({"w": ("w",)}, {}, {"w": {"$tensor": "w"}}),
        ({"w": ("w",), "epoch": ("epoch",)}, {"epoch": 3}, {}),
    ],
    ids=["under model", "with a value", "flat", "mixed"],
)
def test_the_model_is_what_stood_under_its_name_or_a_flat_state_of_tensors(paths, objects, model):
    metadata = Metadata(dict.fromkeys(paths, BytesStorageMetadata()), planner_data=paths)

    values = values_of(metadata, objects)

    assert values["model"] == model
    assert values["dcp"] == {"paths": {name: list(path) for name, path in paths.items()}, "objects": objects}
