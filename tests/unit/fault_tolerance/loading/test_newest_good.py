"""The newest good checkpoint is found by going back step by step; a sound one that does not fit stops the search."""

from __future__ import annotations

import shutil

import pytest
import torch

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_state.per_rank import RankRestoration
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration
from production_ml.fault_tolerance.loading.newest_good import search


@pytest.fixture
def three_steps(directory, commit_step):
    for step in (1, 2, 3):
        commit_step(step, tensors={"x": torch.full((4,), float(step))})
    return directory


def everything(manifest) -> Restoration:
    return Restoration(manifest, [], RankRestoration(manifest, {}, rank=0, world_size=1), {"x"}, {})


def damage(directory, step: int) -> None:
    shard = directory.committed(step) / "rank-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_the_newest_is_taken_where_all_are_good(three_steps):
    found = search(three_steps, everything, rank=0, world_size=1)

    assert found.newest_good.manifest.step == 3
    assert found.newest_good.tensors["x"].tolist() == [3, 3, 3, 3]
    assert found.damaged == {}


def test_damaged_ones_are_passed_over_and_told_of(three_steps):
    damage(three_steps, 3)
    (three_steps.committed(2) / "manifest.json").unlink()

    found = search(three_steps, everything, rank=0, world_size=1)

    assert found.newest_good.manifest.step == 1
    assert [(step, item.tensor) for step, items in found.damaged.items() for item in items] == [(3, "x"), (2, None)]


def test_where_none_is_good_none_is_taken(three_steps):
    for step in (1, 2, 3):
        damage(three_steps, step)

    found = search(three_steps, everything, rank=0, world_size=1)

    assert found.newest_good is None
    assert list(found.damaged) == [3, 2, 1]


def test_a_sound_one_that_does_not_fit_stops_the_search(three_steps):
    def refuse(manifest) -> Restoration:
        raise CheckpointMismatchError("another model")

    with pytest.raises(CheckpointMismatchError):
        search(three_steps, refuse, rank=0, world_size=1)


def test_what_is_being_loaded_is_not_removed_by_a_training_that_prunes_meanwhile(three_steps, commit_step):
    def plan_while_the_training_goes_on(manifest) -> Restoration:
        commit_step(4)
        assert [three_steps.remove(step) for step in (1, 2, 3)] == [True, True, False]
        return everything(manifest)

    found = search(three_steps, plan_while_the_training_goes_on, rank=0, world_size=1)

    assert found.newest_good.manifest.step == 3
    assert three_steps.remove(3)


def test_what_vanishes_meanwhile_is_not_damage_and_a_newer_one_is_taken(three_steps, commit_step):
    """As where a file system has no locks, or a person deletes."""

    def plan_while_the_training_goes_on(manifest) -> Restoration:
        if manifest.step == 3:
            commit_step(4)
            for step in (1, 2, 3):
                shutil.rmtree(three_steps.committed(step))
        return everything(manifest)

    found = search(three_steps, plan_while_the_training_goes_on, rank=0, world_size=1)

    assert found.newest_good.manifest.step == 4
    assert found.damaged == {}


def test_what_a_training_replaces_meanwhile_is_not_damage(three_steps, commit_step):
    replaced = []

    def plan_while_the_training_goes_on(manifest) -> Restoration:
        if not replaced:
            commit_step(3, tensors={"x": torch.full((4,), 7.0)}, save_id="abcd")
            replaced.append(manifest.step)
        return everything(manifest)

    found = search(three_steps, plan_while_the_training_goes_on, rank=0, world_size=1)

    assert found.newest_good.tensors["x"].tolist() == [7, 7, 7, 7]
    assert found.damaged == {}


def test_a_problem_that_nobody_foresaw_is_raised_as_it_is(three_steps):
    def fail(manifest) -> Restoration:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        search(three_steps, fail, rank=0, world_size=1)


def test_an_empty_directory_has_nothing_to_resume(directory):
    assert search(directory, everything, rank=0, world_size=1).newest_good is None
