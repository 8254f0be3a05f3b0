"""Each box is written once, and what cannot be written is named before anything is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.saving.shard_plan import fingerprint, plan_shard


def test_plain_tensors_are_written_by_rank_0_alone():
    tensors = {"a": torch.ones(2), "b": torch.ones(())}

    assert set(plan_shard(tensors, rank=0).data) == {"a", "b"}
    assert plan_shard(tensors, rank=1).holdings == []


def test_tied_tensors_are_written_once_under_all_their_names():
    tied = torch.ones(2, 2)
    plan = plan_shard({"a": tied, "b": nn.Parameter(tied), "transposed": tied.t(), "row": tied[0]}, rank=0)

    assert {held.name: held.key for held in plan.holdings} == {
        "a": "a",
        "b": "a",
        "transposed": "transposed",
        "row": "row",
    }


def test_empty_tensors_share_no_memory():
    plan = plan_shard({"a": torch.empty(0, 2), "b": torch.empty(0, 2)}, rank=0)

    assert set(plan.data) == {"a", "b"}


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.empty(2, device="meta"), nn.LazyLinear(2).weight],
    ids=["sparse", "meta", "lazy"],
)
def test_a_tensor_that_cannot_be_written_is_named(tensor):
    with pytest.raises(CheckpointWriteError, match=r"'model\.odd'"):
        plan_shard({"model.odd": tensor}, rank=0)


def test_ranks_with_other_shapes_have_other_fingerprints_but_may_differ_in_extras():
    tensors = {"model.a": torch.ones(2), "extra.x": torch.ones(1)}

    assert fingerprint(tensors) == fingerprint({"model.a": torch.zeros(2)})
    assert fingerprint(tensors) != fingerprint({"model.a": torch.ones(3)})
    assert fingerprint(tensors) != fingerprint({"model.a": torch.ones(2), "model.b": torch.ones(2)})
