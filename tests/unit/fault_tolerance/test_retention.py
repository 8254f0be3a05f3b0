"""What is kept: the newest, the best, and never less than what a restart needs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory, CheckpointInfo
from production_ml.fault_tolerance.retention import KeepBest, KeepLast, Pruning, steps_to_remove


def infos(**loss_by_step: float) -> list[CheckpointInfo]:
    return [CheckpointInfo(int(name[1:]), {"loss": loss}, created_at=0.0) for name, loss in loss_by_step.items()]


def test_the_newest_n_are_kept():
    assert KeepLast(n=2)(infos(s1=0, s10=0, s9=0)) == {9, 10}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_the_least_or_the_greatest(mode, best):
    assert KeepBest(metric="loss", mode=mode)(infos(s1=0.5, s2=0.1, s3=0.9)) == {best}


def test_of_equals_the_earliest_is_best():
    assert KeepBest(metric="loss").best_step(infos(s3=0.5, s1=0.5, s2=0.5)) == 1


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_loss_that_is_no_number_is_never_best(mode):
    assert KeepBest(metric="loss", mode=mode).best_step(infos(s1=math.nan, s2=7.0)) == 2
    assert KeepBest(metric="loss", mode=mode)(infos(s1=math.nan)) == set()


def test_without_the_metric_there_is_no_best():
    assert KeepBest(metric="accuracy")(infos(s1=0.5)) == set()


def test_policies_add_up():
    checkpoints = infos(s1=0.1, s2=0.5, s3=0.4, s4=0.3)

    assert steps_to_remove(checkpoints, [KeepLast(n=2), KeepBest(metric="loss")]) == {2}


@given(st.dictionaries(st.integers(0, 50), st.floats(), max_size=8), st.integers(1, 5))
def test_the_newest_and_the_best_always_survive(losses, n):
    checkpoints = [CheckpointInfo(step, {"loss": loss}, created_at=0.0) for step, loss in losses.items()]
    removed = steps_to_remove(checkpoints, [KeepLast(n=n), KeepBest(metric="loss")])

    assert len(losses) - len(removed) <= n + 1
    assert not removed & set(sorted(losses)[-n:])
    numbers = {step: loss for step, loss in losses.items() if not math.isnan(loss)}
    if numbers:
        assert min(numbers.values()) in {loss for step, loss in numbers.items() if step not in removed}


@pytest.mark.parametrize("n", [0, -1, 1.5, "3"])
def test_a_number_to_keep_that_cannot_work_is_refused(n):
    with pytest.raises(ConfigError, match="keep_last_n"):
        KeepLast(n=n)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="best_mode"):
        KeepBest(metric="loss", mode="least")  # type: ignore[arg-type]


@pytest.fixture
def commit(commit_step):
    def commit(*steps: int) -> None:
        for step in steps:
            commit_step(step)

    return commit


def test_pruning_removes_what_no_policy_wants(directory, commit):
    commit(1, 2, 3)

    Pruning(directory, [KeepLast(n=2)]).prune(just_committed=3)

    assert directory.steps() == [2, 3]


def test_a_run_in_the_directory_of_an_older_one_keeps_what_it_just_saved_and_is_told(directory, commit, caplog):
    commit(800, 900, 7)
    pruning = Pruning(directory, [KeepLast(n=2)])

    pruning.prune(just_committed=7)
    pruning.prune(just_committed=7)

    assert directory.steps() == [7, 800, 900]
    assert [record.getMessage() for record in caplog.records if "step 900 of an earlier run" in record.message]
    assert len(caplog.records) == 1


def test_a_checkpoint_whose_manifest_is_damaged_is_neither_counted_nor_deleted(directory, commit):
    commit(1, 2, 3)
    (directory.committed(1) / "manifest.json").write_text("{}")

    Pruning(directory, [KeepLast(n=1)]).prune(just_committed=3)

    assert directory.steps() == [1, 3]


def test_a_directory_that_cannot_be_listed_fails_no_save(directory, caplog):
    class Unlistable(CheckpointDirectory):
        """A file server that stumbles just then."""

        def steps(self) -> list[int]:
            raise OSError(116, "Stale file handle")

    Pruning(Unlistable(directory.path), [KeepLast(n=1)]).prune(just_committed=3)

    assert "nothing was pruned (Stale file handle)" in caplog.text
