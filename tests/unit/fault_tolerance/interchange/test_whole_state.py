"""An export holds the state dict that a person would have saved, and nothing of ours in its place."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance import CheckpointManager, PerRank
from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory
from production_ml.fault_tolerance.interchange.whole_state import leaves_of, nested, stand_ins, state_by_number

STATE = {"a": {"b": 1, "c": [torch.ones(1), {"d": 2}]}, "plain": [1, 2], "empty": {}}


def test_a_state_is_made_of_its_leaves_again():
    leaves = dict(leaves_of(STATE))
    named = {".".join(map(str, path)): leaf for path, leaf in leaves.items()}

    found = nested(named, {".".join(map(str, path)): path for path in leaves})

    assert set(named) == {"a.b", "a.c.0", "a.c.1.d", "plain"}
    assert found == {"a": STATE["a"], "plain": [1, 2]}


def test_a_name_without_a_path_is_a_key_by_itself():
    assert nested({"x.y": 1}, {}) == {"x.y": 1}


def test_list_items_come_to_their_places_in_any_order():
    assert nested({"l.1": "b", "l.0": "a"}, {"l.1": ("l", 1), "l.0": ("l", 0)}) == {"l": ["a", "b"]}


def test_stand_ins_have_types_and_shapes_and_no_memory(saved):
    found = stand_ins(saved.manifest(300))

    weight = found["model.0.weight"]
    assert (weight.shape, weight.dtype, weight.device.type) == ((5, 3), torch.float32, "meta")


def test_what_differs_by_rank_is_a_list(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=torch.nn.Linear(1, 1), step=1, seen=PerRank({"batches": 7}))
    manifest = CheckpointDirectory(tmp_path).manifest(1)

    state = state_by_number(manifest, stand_ins(manifest))

    assert "optimizer" not in state
    assert [rank["seen"] for rank in state["rank_values"]] == [{"batches": 7}]


@pytest.mark.parametrize("name", ["rank_values", "production_ml"])
def test_an_extra_is_never_lost_to_a_part_of_the_same_name(tmp_path, name):
    with CheckpointManager(tmp_path) as manager:
        manager.save(model=torch.nn.Linear(1, 1), step=1, **{name: "mine"})
    manifest = CheckpointDirectory(tmp_path).manifest(1)

    with pytest.raises(CheckpointWriteError, match=f"'{name}' has a name"):
        state_by_number(manifest, stand_ins(manifest))
