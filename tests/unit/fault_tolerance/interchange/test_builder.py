"""A checkpoint that is made piece by piece is whole and verified, or leaves no trace."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError, InputFileError
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.interchange.builder import CheckpointBuilder
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_tensor

VALUES = {"model": {"x": {"$tensor": "x"}}, "optimizer": None, "extra": {}}


def names_in(directory):
    return sorted(entry.name for entry in directory.path.iterdir())


def test_boxes_become_one_tensor_over_as_many_shards_as_it_takes(directory):
    whole = torch.arange(12.0).reshape(4, 3)
    taken: list[int] = []

    with CheckpointBuilder(directory, 5, shard_bytes=20, on_bytes=taken.append) as builder:
        for row in range(4):
            builder.add("x", whole[row : row + 1].t().contiguous().t(), offsets=(row, 0), shape=(4, 3))
        manifest = builder.commit(VALUES, {"loss": 0.5})

    assert taken == [12] * 4
    assert names_in(directory) == ["step-00000005"]
    assert len(manifest.files) == 2
    assert directory.manifest(5) == manifest
    assert list(verify_checkpoint(directory, 5)) == []
    with CheckpointSource(directory, 5) as source:
        assert torch.equal(read_tensor(source, "x"), whole)


def test_what_is_not_committed_leaves_no_trace(directory):
    with CheckpointBuilder(directory, 5, shard_bytes=1) as builder:
        builder.add("x", torch.ones(3))
        assert names_in(directory) != []

    assert names_in(directory) == []


def test_boxes_that_do_not_make_up_their_tensor_are_never_committed(directory):
    with CheckpointBuilder(directory, 5) as builder:
        builder.add("x", torch.ones(1, 3), offsets=(0, 0), shape=(4, 3))
        with pytest.raises(CheckpointWriteError, match="'x' is not whole"):
            builder.commit(VALUES, {})

    assert names_in(directory) == []


def test_a_step_that_is_there_is_not_replaced(directory, commit_step):
    commit_step(5)
    before = directory.identity(5)

    with pytest.raises(InputFileError, match="exists already"):
        CheckpointBuilder(directory, 5)

    assert directory.identity(5) == before


def test_a_place_that_cannot_be_made_is_a_clear_error(directory):
    directory.path.write_text("a file")

    with pytest.raises(CheckpointWriteError, match="step 5 could not be written"):
        CheckpointBuilder(directory, 5)
