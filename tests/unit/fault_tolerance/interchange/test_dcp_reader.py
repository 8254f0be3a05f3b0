"""What DCP loads is one checkpoint, verified, on every rank, in whatever boxes it is wanted."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance.interchange.dcp_reader import VerifiedStorageReader
from production_ml.fault_tolerance.interchange.dcp_storage import own_errors

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")
WHOLE = torch.arange(12.0).reshape(4, 3)


def planned(reader: VerifiedStorageReader, state: dict[str, torch.Tensor]):
    """What a rank does before it is told to read."""
    planner = DefaultLoadPlanner()
    reader.reset()
    planner.set_up_planner(state, reader.read_metadata(), is_coordinator=True)
    return planner, reader.prepare_local_plan(planner.create_local_plan())


def test_a_tensor_that_was_cut_into_boxes_is_loaded_whole(cut):
    directory = cut({"w": {(0, 0): WHOLE[:3], (3, 0): WHOLE[3:]}}, w=(4, 3))
    state = {"model": {"w": torch.zeros(4, 3)}}

    dcp.load(state, storage_reader=VerifiedStorageReader(directory.path))

    assert torch.equal(state["model"]["w"], WHOLE)


def test_ranks_that_found_different_newest_checkpoints_load_neither(cut):
    directory = cut({"w": torch.ones(2)}, step=1)
    state = {"model.w": torch.zeros(2)}
    first, other = VerifiedStorageReader(directory.path), VerifiedStorageReader(directory.path)

    _, plan = planned(first, state)
    cut({"w": torch.full((2,), 2.0)}, step=2)  # a training commits meanwhile
    _, other_plan = planned(other, state)

    with pytest.raises(CheckpointError, match=r"different newest checkpoints \(1, 2\)"):
        first.prepare_global_plan([plan, other_plan])
    assert first.prepare_global_plan([plan, plan]) == [plan, plan]


def test_a_checkpoint_that_is_saved_anew_while_it_is_read_is_not_loaded_in_parts(cut):
    directory = cut({"w": torch.ones(2)}, step=1)
    state = {"model.w": torch.zeros(2)}
    reader = VerifiedStorageReader(directory.path)
    planner, plan = planned(reader, state)

    shutil.rmtree(directory.committed(1))
    cut({"w": torch.full((2,), 2.0)}, step=1)

    with pytest.raises(CheckpointError, match="saved anew"):
        reader.read_data(plan, planner)
    assert not state["model.w"].any()


def test_a_reader_loads_the_newest_of_each_time(cut):
    directory = cut({"w": torch.ones(2)}, step=1)
    reader = VerifiedStorageReader(directory.path)
    state = {"model": {"w": torch.zeros(2)}}
    dcp.load(state, storage_reader=reader)

    cut({"w": torch.full((2,), 2.0)}, step=2)
    with own_errors():
        dcp.load(state, storage_reader=reader)

    assert state["model"]["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("name", "is_valid"), [("step-00000007", True), ("7", True), ("latest", False)])
def test_an_id_is_valid_where_it_names_a_step(name, is_valid):
    assert VerifiedStorageReader.validate_checkpoint_id(name) is is_valid
