"""Damage is kept as evidence and told of; where it cannot be moved, training resumes all the same."""

from __future__ import annotations

import json
import logging

import pytest

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.loading.newest_good import Search
from production_ml.fault_tolerance.loading.setting_aside import set_damaged_aside


class Refusing(CheckpointDirectory):
    """A place that cannot move anything, and says so in its own way."""

    def __init__(self, path, refusal):
        super().__init__(path)
        self.refusal = refusal

    def quarantine(self, step, reason):
        raise self.refusal


@pytest.fixture
def damage():
    return Damage(step=3, file="rank-00000.safetensors", tensor="x", problem="does not match its hash")


def test_a_damaged_checkpoint_is_moved_with_the_reason_and_told_of(directory, commit_step, damage, caplog):
    commit_step(3)

    set_damaged_aside(directory, Search(None, {3: [damage]}))

    [reason] = directory.path.glob("quarantine/*/*reason*")
    assert json.loads(reason.read_text())["damage"] == [damage.to_dict()]
    assert directory.steps() == []
    assert "NO GOOD CHECKPOINT IS LEFT" in caplog.text


@pytest.mark.parametrize("refusal", [OSError(30, "Read-only file system"), RuntimeError("no such bucket")])
def test_one_that_cannot_be_moved_is_told_of_where_it_is(tmp_path, damage, caplog, refusal):
    place = Refusing(tmp_path, refusal)

    with caplog.at_level(logging.WARNING):
        set_damaged_aside(place, Search(None, {3: [damage]}))

    assert f"cannot be moved to quarantine ({refusal!r})" in caplog.text
    assert "The damaged one could not be moved to quarantine." in caplog.text


def test_a_damaged_copy_in_memory_is_told_of_and_nothing_is_moved(directory, commit_step, damage, caplog):
    commit_step(3)

    set_damaged_aside(directory, Search(None, {}, damaged_copies={"00ff": [damage]}))

    assert directory.steps() == [3]
    assert "The copy of step 3 in memory is passed over" in caplog.text
