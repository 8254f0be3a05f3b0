"""What DCP saves is committed as a whole, or leaves no trace."""

from __future__ import annotations

import io

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_format import verify_checkpoint
from production_ml.fault_tolerance.interchange.dcp_reader import VerifiedStorageReader
from production_ml.fault_tolerance.interchange.dcp_storage import own_errors
from production_ml.fault_tolerance.interchange.dcp_writer import VerifiedStorageWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")


class ByHand(DefaultSavePlanner):
    """A user's planner that makes the bytes of an object itself."""

    def transform_object(self, write_item, object):  # noqa: A002 - DCP's name
        return io.BytesIO(object) if isinstance(object, bytes) else super().transform_object(write_item, object)


def test_a_save_of_a_step_that_is_there_takes_its_place(directory):
    for number in (1.0, 2.0):
        dcp.save({"w": torch.full((2,), number)}, storage_writer=VerifiedStorageWriter(directory.path, 5))

    state = {"w": torch.zeros(2)}
    dcp.load(state, storage_reader=VerifiedStorageReader(directory.path))
    assert state["w"].tolist() == [2.0, 2.0]
    assert list(verify_checkpoint(directory, 5)) == []


def test_a_file_system_that_refuses_is_a_write_error_and_leaves_nothing(directory, file_size_limit, listing):
    with file_size_limit(100), pytest.raises(CheckpointWriteError, match="File too large"), own_errors():
        dcp.save({"w": torch.ones(1000)}, storage_writer=VerifiedStorageWriter(directory.path, 5))

    assert listing(directory.path) == []


def test_a_save_that_was_given_up_is_cleared_away_by_the_next(directory, listing):
    writer = VerifiedStorageWriter(directory.path, 5)
    writer.prepare_global_plan([])
    begun = listing(directory.path)

    writer.prepare_global_plan([])

    assert len(begun) == len(listing(directory.path)) == 1
    assert listing(directory.path) != begun
    writer.reset()
    assert listing(directory.path) == []


def test_ranks_that_do_not_talk_are_refused(directory):
    with pytest.raises(ConfigError, match="committed by all ranks together"):
        VerifiedStorageWriter(directory.path, 5).set_up_storage_writer(True, use_collectives=False)


def test_what_was_not_begun_is_not_committed(directory):
    with pytest.raises(CheckpointWriteError, match="was not begun"):
        VerifiedStorageWriter(directory.path, 5).finish(Metadata({}), [])

    assert directory.steps() == []


def test_bytes_of_a_planner_are_read_as_a_plain_value_or_refused_by_name(directory, listing):
    plain = io.BytesIO()
    torch.save({"seen": 3}, plain)
    dcp.save({"n": plain.getvalue()}, storage_writer=VerifiedStorageWriter(directory.path, 1), planner=ByHand())

    assert directory.manifest(1).values["dcp"]["objects"] == {"n": {"seen": 3}}
    with pytest.raises(CheckpointWriteError, match="n comes from ByHand as bytes"), own_errors():
        dcp.save({"n": b"no value"}, storage_writer=VerifiedStorageWriter(directory.path, 2), planner=ByHand())
    assert listing(directory.path) == ["step-00000001"]
