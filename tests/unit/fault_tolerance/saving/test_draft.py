"""What a rank would write is checked, copied and given a place before the ranks agree, or leaves nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.saving.draft import (
    Drafting,
    SaveInputs,
    SavingIsPausedError,
    parse_metrics,
    parse_step,
)
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def draft(directory, *, step: int = 1, rank: int = 0, world_size: int = 2, admits=None, **extra):
    inputs = SaveInputs(nn.Linear(2, 2), None, step, {"loss": torch.tensor(0.5)}, extra)
    drafting = Drafting(
        directory=directory,
        planner=ShardPlanner(rank=rank),
        staging=Staging(),
        rank=rank,
        world_size=world_size,
        admits=admits,
    )
    return drafting.draft(inputs, frozenset())


@pytest.mark.parametrize("step", [3, np.int64(3), torch.tensor(3)])
def test_a_step_is_a_whole_number(step):
    assert parse_step(step) == 3


@pytest.mark.parametrize("step", [-1, 1.5, "3", None, torch.tensor([1, 2])])
def test_what_is_no_step_is_refused(step):
    with pytest.raises(ConfigError, match="step"):
        parse_step(step)


def test_metrics_may_be_tensors_and_may_be_no_numbers():
    parsed = parse_metrics({"a": torch.tensor(0.5, requires_grad=True), "b": torch.ones(1), "c": 2, "d": math.nan})

    assert str(parsed) == "{'a': 0.5, 'b': 1.0, 'c': 2.0, 'd': nan}"


@pytest.mark.parametrize("value", ["0.5", None, torch.ones(2), [1]])
def test_a_metric_that_is_no_number_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"metrics\['loss'\]"):
        parse_metrics({"loss": value})


def test_only_rank_0_makes_the_directory_and_gives_values(directory):
    follower, leader = draft(directory, rank=1), draft(directory, rank=0)

    assert follower.lock is None
    assert follower.order.values is None
    assert all(held.name.startswith("rank-1.random/") for held in follower.order.contents.holdings)
    assert leader.order.written.path.is_dir()
    assert follower.fingerprint == leader.fingerprint
    leader.abandon()
    assert names_in(directory.path) == []


def test_where_there_is_no_room_nothing_is_made_and_the_log_is_left_to_the_pause(directory, caplog):
    asked = []

    with pytest.raises(SavingIsPausedError):
        draft(directory, step=3, admits=lambda step, size_bytes: asked.append((step, size_bytes)))

    [(step, size_bytes)] = asked
    assert step == 3
    assert size_bytes > 4096 + 6 * 4  # a page of header, the tensors, and the random generators
    assert not directory.path.exists()
    assert caplog.records == []


def test_state_that_cannot_be_saved_is_told_to_the_log_and_leaves_nothing(directory, caplog):
    with pytest.raises(CheckpointWriteError, match=r"extra\.loader"):
        draft(directory, loader=object())

    assert [record.event for record in caplog.records] == ["checkpoint_save_failed"]
    assert directory.steps() == []
    assert not directory.path.exists()


def test_an_error_is_not_raised_as_its_own_cause(directory):
    with pytest.raises(CheckpointWriteError, match=r"extra\.loader") as raised:
        draft(directory, loader=object())

    assert raised.value.__cause__ is not raised.value


def test_a_directory_that_cannot_be_made_is_a_clear_error(directory):
    directory.path.write_text("a file")

    with pytest.raises(CheckpointWriteError, match="move the file that is in its place"):
        draft(directory)


def test_where_there_is_no_memory_for_the_copy_the_directory_is_removed_again(directory, file_size_limit):
    with file_size_limit(5000), pytest.raises(CheckpointWriteError, match="step 7 could not be written"):
        draft(directory, step=7, large=torch.ones(5000))

    assert names_in(directory.path) == []
