"""A checkpoint whose directory lost its name to a bad disk is found; a copy that somebody named is left alone."""

from __future__ import annotations

import shutil

import pytest

from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.misnamed import find_misnamed
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint


@pytest.fixture
def two_steps(directory, trained):
    model, optimizer = trained
    with CheckpointManager(directory.path) as manager:
        for step in (1, 2):
            manager.save(model=model, optimizer=optimizer, step=step, metrics={"loss": 1.0})
    return directory


@pytest.mark.parametrize("name", ["stup-00000002", "step-000000p2", "step-00000000", "step-00000003"])
def test_a_flipped_bit_in_the_name_is_found_by_verify_and_mended_by_a_load(two_steps, fresh, name):
    (two_steps.path / "step-00000002").rename(two_steps.path / name)

    assert [(found.step, found.path) for found in two_steps.misnamed()] == [(2, two_steps.path / name)]
    state = CheckpointManager(two_steps.path).load_latest(*fresh())

    assert state["step"] == 2
    assert two_steps.steps() == [1, 2]
    assert two_steps.misnamed() == []
    assert list(verify_checkpoint(two_steps, 2)) == []


@pytest.mark.parametrize("name", ["best", "step-00000002-copy", "step-00000012"])
def test_what_somebody_named_is_left_alone(two_steps, name):
    shutil.copytree(two_steps.path / "step-00000002", two_steps.path / name)

    assert list(find_misnamed(two_steps.path)) == []


@pytest.mark.parametrize("name", ["step-20261125", "keep-00000002", "step_00000002", "Step_00000002", "step-000002"])
def test_a_name_that_is_far_from_the_steps_own_was_chosen(two_steps, name):
    (two_steps.path / "step-00000002").rename(two_steps.path / name)

    assert list(find_misnamed(two_steps.path)) == []


def test_what_was_put_back_is_not_removed_by_the_same_process_until_it_is_saved_anew(two_steps, commit_step):
    (two_steps.path / "step-00000001").rename(two_steps.path / "stup-00000001")
    two_steps.put_back()

    assert not two_steps.remove(1)
    assert two_steps.steps() == [1, 2]
    commit_step(1, save_id="00aa")
    assert two_steps.remove(1)
