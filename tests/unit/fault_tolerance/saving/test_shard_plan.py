"""Each box is written once, an unchanged layout is planned once, and what cannot be written is named first."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_state.capture_cache import Layout
from production_ml.fault_tolerance.saving.shard_plan import ShardPlan, ShardPlanner


def plan_once(tensors: dict[str, torch.Tensor], rank: int = 0) -> ShardPlan:
    return ShardPlanner(rank=rank).plan(tensors)


def test_plain_tensors_are_written_by_rank_0_alone():
    tensors = {"a": torch.ones(2), "b": torch.ones(())}

    assert set(plan_once(tensors).data) == {"a", "b"}
    assert plan_once(tensors, rank=1).contents.holdings == ()
    assert plan_once(tensors, rank=1).data == {}


def test_tied_tensors_are_written_once_under_all_their_names():
    tied = torch.ones(2, 2)
    plan = plan_once({"a": tied, "b": nn.Parameter(tied), "transposed": tied.t(), "row": tied[0]})

    assert {held.name: held.key for held in plan.contents.holdings} == {
        "a": "a",
        "b": "a",
        "transposed": "transposed",
        "row": "row",
    }


def test_views_of_the_same_memory_that_mean_other_values_are_written_each():
    numbers = torch.tensor([1 + 2j])
    plan = plan_once({"a": numbers, "conjugated": numbers.conj(), "bits": numbers.view(torch.float32)})

    assert set(plan.data) == {"a", "conjugated", "bits"}


def test_empty_tensors_share_no_memory():
    plan = plan_once({"a": torch.empty(0, 2), "b": torch.empty(0, 2)})

    assert set(plan.data) == {"a", "b"}


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.empty(2, device="meta"), nn.LazyLinear(2).weight],
    ids=["sparse", "meta", "lazy"],
)
def test_a_tensor_that_cannot_be_written_is_named(tensor):
    planner = ShardPlanner(rank=0)
    planner.plan({"model.odd": torch.ones(2)})

    for _ in range(2):
        with pytest.raises(CheckpointWriteError, match=r"'model\.odd'"):
            planner.plan({"model.odd": tensor})


def test_ranks_with_other_shapes_have_other_fingerprints_but_may_differ_in_extras():
    def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
        return plan_once(tensors).fingerprint

    tensors = {"model.a": torch.ones(2), "extra.x": torch.ones(1)}

    assert fingerprint(tensors) == fingerprint({"model.a": torch.zeros(2)})
    assert fingerprint(tensors) != fingerprint({"model.a": torch.ones(3)})
    assert fingerprint(tensors) != fingerprint({"model.a": torch.ones(2, dtype=torch.float64)})
    assert fingerprint(tensors) != fingerprint({"model.a": torch.ones(2), "model.b": torch.ones(2)})


def test_as_long_as_the_layout_stands_the_contents_are_the_same_object():
    planner = ShardPlanner(rank=0)
    model = nn.Linear(3, 3)
    first = planner.plan(dict(model.named_parameters()))
    with torch.no_grad():
        model.weight.add_(1)

    second = planner.plan(dict(model.named_parameters()))

    assert second.contents is first.contents
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.data["weight"], model.weight)


def test_new_tensors_in_an_old_layout_are_the_ones_that_are_written():
    planner = ShardPlanner(rank=0)
    first = planner.plan({"exp_avg": torch.ones(4)})
    replacement = torch.full((4,), 2.0)

    second = planner.plan({"exp_avg": replacement})

    assert second.contents is first.contents
    assert second.data["exp_avg"].data_ptr() == replacement.data_ptr()
    assert second.owners["exp_avg"] is replacement


def test_data_that_was_put_under_a_parameter_is_noticed():
    planner = ShardPlanner(rank=0)
    parameter = nn.Parameter(torch.ones(4))
    planner.plan({"w": parameter})
    parameter.data = torch.full((4,), 2.0)

    plan = planner.plan({"w": parameter})

    assert plan.data["w"].tolist() == [2, 2, 2, 2]


def test_another_shape_type_or_name_is_laid_out_anew():
    planner = ShardPlanner(rank=0)
    parameter = nn.Parameter(torch.ones(4))
    contents = planner.plan({"w": parameter}).contents

    parameter.data = torch.ones(9)
    resized = planner.plan({"w": parameter}).contents
    parameter.data = torch.ones(9, dtype=torch.float64)
    retyped = planner.plan({"w": parameter}).contents
    named = planner.plan({"v": parameter}).contents

    assert len({id(one) for one in (contents, resized, retyped, named)}) == 4
    assert [resized.layout.extents["w"].size_bytes, retyped.layout.extents["w"].size_bytes] == [36, 72]
    assert set(named.layout.extents) == {"v"}


def test_a_tie_that_is_made_or_cut_between_two_saves_is_noticed():
    planner = ShardPlanner(rank=0)
    one, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
    assert set(planner.plan({"a": one, "b": other}).data) == {"a", "b"}

    other.data = one.data
    assert set(planner.plan({"a": one, "b": other}).data) == {"a"}
    other.data = torch.zeros(4)
    assert set(planner.plan({"a": one, "b": other}).data) == {"a", "b"}


def test_a_planner_keeps_no_tensor_alive_once_its_plan_is_gone():
    planner = ShardPlanner(rank=0)
    tensors = {"exp_avg": torch.ones(4), "w": nn.Parameter(torch.ones(4))}
    held = [weakref.ref(tensor) for tensor in tensors.values()]
    for _ in range(2):
        planner.plan(tensors)

    tensors.clear()

    assert [reference() for reference in held] == [None, None]


def test_a_tensor_in_the_place_of_a_dead_one_is_the_one_that_is_written():
    planner = ShardPlanner(rank=0)
    for value in range(20):  # memory and ids are used again
        tensors = {"exp_avg": torch.full((4,), float(value))}
        assert planner.plan(tensors).data["exp_avg"].tolist() == [value] * 4
        del tensors


def test_a_tensor_that_cannot_be_written_is_named_again_though_the_layout_stands():
    planner = ShardPlanner(rank=0)
    planner.plan({"model.odd": torch.ones(2)}, layout=Layout())
    tensors, layout = {"model.odd": torch.empty(2, device="meta")}, Layout()

    for _ in range(2):
        with pytest.raises(CheckpointWriteError, match=r"'model\.odd'"):
            planner.plan(tensors, layout=layout)
