"""What is kept: the newest, the best, and never less than what a restart needs."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory, CheckpointInfo
from production_ml.fault_tolerance.checkpoint_format.read_lease import read_lease
from production_ml.fault_tolerance.retention import (
    KeepBest,
    KeepEvery,
    KeepEveryInterval,
    KeepLast,
    Pruning,
    explain,
    steps_to_remove,
)


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


def test_more_than_one_best_can_be_kept():
    assert KeepBest(metric="loss", n=2)(infos(s1=0.5, s2=0.1, s3=0.5, s4=math.nan)) == {1, 2}


def test_milestones_are_the_first_steps_at_or_past_each_multiple():
    checkpoints = infos(s300=0, s900=0, s1000=0, s1100=0, s2100=0, s2400=0)

    assert KeepEvery(n=1000)(checkpoints) == {1000, 2100}


@given(st.sets(st.integers(0, 300), max_size=30), st.integers(1, 60), st.data())
def test_a_milestone_stays_one_whatever_else_is_removed(steps, n, data):
    checkpoints = [CheckpointInfo(step, {}, created_at=0.0) for step in steps]
    milestones = KeepEvery(n=n)(checkpoints)
    others_left = data.draw(st.sets(st.sampled_from(sorted(steps - milestones)))) if steps - milestones else set()

    assert KeepEvery(n=n)([c for c in checkpoints if c.step in milestones | others_left]) == milestones


def test_one_an_hour_is_the_first_of_each_hour():
    seconds = {1: 10.0, 2: 3500.0, 3: 3600.0, 4: 7100.0, 5: 7300.0}
    checkpoints = [CheckpointInfo(step, {}, created_at=at) for step, at in seconds.items()]

    assert KeepEveryInterval(interval=timedelta(hours=1))(checkpoints) == {1, 3, 5}


def test_every_step_is_told_why_it_is_kept_and_one_to_remove_has_no_reason():
    checkpoints = infos(s4=0.3, s1=0.1, s2=0.5, s3=0.4)

    assert explain(checkpoints, [KeepLast(n=2), KeepBest(metric="loss"), KeepEvery(n=3)]) == {
        1: ["the lowest loss"],
        2: [],
        3: ["among the 2 newest", "a milestone: the first at or past a multiple of 3"],
        4: ["the newest", "among the 2 newest"],
    }
    assert explain([], [KeepLast(n=2)]) == {}


def test_policies_add_up():
    checkpoints = infos(s1=0.1, s2=0.5, s3=0.4, s4=0.3)

    assert steps_to_remove(checkpoints, [KeepLast(n=2), KeepBest(metric="loss")]) == {2}


@given(st.dictionaries(st.integers(0, 50), st.floats(), max_size=12), st.data())
def test_no_policy_loses_what_another_wants_and_pruning_again_removes_nothing_more(losses, data):
    hours = st.integers(0, 5).map(float)
    checkpoints = [CheckpointInfo(step, {"loss": loss}, data.draw(hours) * 3600) for step, loss in losses.items()]
    choices = [KeepLast(n=2), KeepBest(metric="loss", n=2), KeepBest(metric="loss", mode="max"), KeepEvery(n=7)]
    choices.append(KeepEveryInterval(interval=timedelta(hours=2)))
    policies = data.draw(st.lists(st.sampled_from(choices), unique=True))
    removed = steps_to_remove(checkpoints, policies)
    left = [checkpoint for checkpoint in checkpoints if checkpoint.step not in removed]

    for policy in policies:
        assert policy(left) == policy(checkpoints)
    assert steps_to_remove(left, policies) == set()
    assert max(losses, default=None) not in removed


@given(st.dictionaries(st.integers(0, 50), st.floats(), max_size=8), st.integers(1, 5))
def test_the_newest_and_the_best_always_survive(losses, n):
    checkpoints = [CheckpointInfo(step, {"loss": loss}, created_at=0.0) for step, loss in losses.items()]
    removed = steps_to_remove(checkpoints, [KeepLast(n=n), KeepBest(metric="loss")])

    assert len(losses) - len(removed) <= n + 1
    assert not removed & set(sorted(losses)[-n:])
    numbers = {step: loss for step, loss in losses.items() if not math.isnan(loss)}
    if numbers:
        assert min(numbers.values()) in {loss for step, loss in numbers.items() if step not in removed}


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True])
def test_a_number_to_keep_that_cannot_work_is_refused(n):
    with pytest.raises(ConfigError, match="keep_last_n"):
        KeepLast(n=n)
    with pytest.raises(ConfigError, match="keep_best_n"):
        KeepBest(metric="loss", n=n)
    with pytest.raises(ConfigError, match="keep_every"):
        KeepEvery(n=n)


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-1), 3600])
def test_an_interval_to_keep_that_cannot_work_is_refused(interval):
    with pytest.raises(ConfigError, match="keep_every_interval"):
        KeepEveryInterval(interval=interval)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="best_mode"):
        KeepBest(metric="loss", mode="least")  # type: ignore[arg-type]


@pytest.fixture
def commit(commit_step):
    def commit(*steps: int, **metrics: float) -> None:
        for step in steps:
            commit_step(step, metrics=metrics)

    return commit


def test_pruning_removes_what_no_policy_wants(directory, commit):
    commit(1, 2, 3)

    Pruning(directory, [KeepLast(n=2)]).prune(just_committed=3)

    assert directory.steps() == [2, 3]


def test_a_save_below_the_newest_step_stays_and_is_told_without_guessing_whose_that_one_is(directory, commit, caplog):
    commit(800, 900, 7)
    pruning = Pruning(directory, [KeepLast(n=2)])

    pruning.prune(just_committed=7)
    pruning.prune(just_committed=7)

    assert directory.steps() == [7, 800, 900]
    assert [record.getMessage() for record in caplog.records if "a higher step, 900:" in record.message]
    assert len(caplog.records) == 1


def test_a_checkpoint_whose_manifest_is_damaged_is_neither_counted_nor_deleted(directory, commit):
    commit(1, 2, 3)
    (directory.committed(1) / "manifest.json").write_text("{}")

    Pruning(directory, [KeepLast(n=1)]).prune(just_committed=3)

    assert directory.steps() == [1, 3]


def test_a_newest_checkpoint_that_is_not_whole_does_not_cost_the_good_one_before_it(directory, commit, caplog):
    commit(1, 2, 3)
    (directory.committed(3) / "rank-00000.safetensors").unlink()
    pruning = Pruning(directory, [KeepLast(n=1)])

    assert pruning.explain() == {
        1: [],
        2: ["the newest", "among the 1 newest"],
        3: ["damaged or not whole: the next load sets it aside"],
    }
    pruning.prune(just_committed=2)
    pruning.prune(just_committed=2)

    assert directory.steps() == [2, 3]
    assert caplog.text.count("step-00000003: a file is missing or has another size") == 1


def test_what_is_being_read_is_passed_over_until_it_is_read(directory, commit):
    commit(1, 2, 3)
    pruning = Pruning(directory, [KeepLast(n=1)])

    with read_lease(directory.committed(1)):
        assert pruning.explain()[1] == ["being read"]
        assert pruning.prune(just_committed=3) == [2]
    assert pruning.prune() == [1]


def test_what_had_lost_its_name_stays_and_is_not_said_to_be_read_alone(directory, commit, caplog):
    caplog.set_level("DEBUG", logger=Pruning.__module__)
    commit(1, 2)
    directory.committed(1).rename(directory.path / "stup-00000001")
    directory.put_back()

    assert Pruning(directory, [KeepLast(n=1)]).prune(just_committed=2) == []

    assert directory.steps() == [1, 2]
    assert "step-00000001: stays: it is read, or had lost its name" in caplog.text


def test_room_is_made_by_what_the_coming_commit_would_let_go_of(directory, commit):
    commit(1, 2, 3)
    directory.begin(4, "dead").release()

    assert Pruning(directory, [KeepLast(n=3)]).make_room(coming=4) == [1]

    assert directory.steps() == [2, 3]
    assert not directory.incomplete(4, "dead").path.exists()


def test_making_room_for_a_save_that_may_fail_keeps_the_newest_and_the_best(directory, commit):
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)):
        commit(step, loss=loss)
    pruning = Pruning(directory, [KeepLast(n=1), KeepBest(metric="loss")])

    assert pruning.make_room(coming=5) == [1, 3]
    assert pruning.make_room(coming=4) == []

    assert directory.steps() == [2, 4]


def test_a_directory_that_cannot_be_listed_fails_no_save(directory, caplog):
    class Unlistable(CheckpointDirectory):
        """A file server that stumbles just then."""

        def steps(self) -> list[int]:
            raise OSError(116, "Stale file handle")

    pruning = Pruning(Unlistable(directory.path), [KeepLast(n=1)])

    assert pruning.prune(just_committed=3) == []
    assert pruning.make_room(coming=4) == []
    assert "nothing was pruned (Stale file handle)" in caplog.text
    assert "no room was made (Stale file handle)" in caplog.text
