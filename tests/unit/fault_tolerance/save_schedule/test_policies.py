"""Policies answer with steps, compose, and are refused when they are built wrongly."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.save_schedule import (
    AnyOf,
    AutoInterval,
    EveryEpochs,
    EveryInterval,
    EverySteps,
    Progress,
    parse_save_every,
)
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(("last_step", "due"), [(0, 100), (99, 100), (100, 200), (101, 200)])
def test_a_number_of_steps_means_its_multiples_whatever_step_the_last_save_was_at(last_step, due):
    assert EverySteps(100).next_step(Progress(step=last_step, last_step=last_step)) == due


@pytest.mark.parametrize(
    ("seconds_since", "pace", "due"),
    [
        (0.0, 1.0, 160),
        (59.5, 1.0, 101),
        (500.0, 1.0, 101),  # overdue
        (0.0, 7.0, 109),
        (0.0, 1000.0, 101),
        (0.0, 0.0, 101),
        (0.0, None, None),
    ],
)
def test_an_interval_is_foreseen_from_the_pace(seconds_since, pace, due):
    progress = Progress(step=100, last_step=90, seconds_since=seconds_since, seconds_per_step=pace)

    assert EveryInterval(MINUTE).next_step(progress) == due


def test_the_automatic_interval_saves_early_once_to_learn_what_saves_cost():
    progress = Progress(step=10, last_step=0, seconds_since=10.0, seconds_per_step=1.0)

    assert AutoInterval().next_step(progress) == 60


def test_the_automatic_interval_follows_cost_and_failures():
    progress = Progress(step=0, last_step=0, seconds_per_step=1.0, save_cost_seconds=0.5)
    calm = AutoInterval().chosen_interval(progress)
    stormy_history = FailureHistory(failures=99, observed_seconds=4 * 86400.0)
    stormy = AutoInterval().chosen_interval(
        Progress(step=0, last_step=0, save_cost_seconds=0.5, history=stormy_history)
    )

    assert calm.interval.total_seconds() == pytest.approx(293.9, abs=0.1)
    assert AutoInterval().next_step(progress) == 294
    assert stormy.mean_time_between_failures == timedelta(hours=1.2)
    assert stormy.interval.total_seconds() == pytest.approx(65.7, abs=0.1)


@pytest.mark.parametrize(("cost", "seconds"), [(0.0, 10.0), (50_000.0, 86_400.0), (1e7, 86_400.0)])
def test_the_automatic_interval_keeps_to_its_bounds_and_never_fails_on_a_cost(cost, seconds):
    chosen = AutoInterval().chosen_interval(Progress(step=0, last_step=0, save_cost_seconds=cost))

    assert chosen.interval.total_seconds() == seconds


def test_any_of_several_takes_the_first_that_is_due():
    both = AnyOf(EverySteps(100), EveryInterval(MINUTE))

    assert both.is_timed
    assert both.next_step(Progress(step=0, last_step=0)) == 100
    assert both.next_step(Progress(step=0, last_step=0, seconds_per_step=1.0)) == 60
    assert both.next_step(Progress(step=0, last_step=0, seconds_per_step=0.1)) == 100
    assert not AnyOf(EverySteps(100), EverySteps(30)).is_timed
    assert AnyOf(EverySteps(100), AutoInterval()).chosen_interval(Progress(step=0, last_step=0)) is not None


@given(
    st.integers(0, 10**9),
    st.floats(0, 1e9),
    st.none() | st.floats(0, 1e9, allow_subnormal=True),
    st.none() | st.floats(0, 1e9),
)
def test_what_is_due_next_is_never_now_or_in_the_past(step, seconds_since, pace, cost):
    progress = Progress(
        step=step, last_step=step, seconds_since=seconds_since, seconds_per_step=pace, save_cost_seconds=cost
    )

    for policy in (EverySteps(7), EveryInterval(MINUTE), AutoInterval(), AnyOf(EverySteps(7), AutoInterval())):
        due = policy.next_step(progress)
        assert due is None or due > step


def test_epochs_are_counted_from_one():
    assert [EveryEpochs(2).is_due(ended) for ended in range(5)] == [False, False, True, False, True]


def test_settings_become_policies():
    policy = AnyOf(EverySteps(3), AutoInterval())

    assert parse_save_every(500) == EverySteps(500)
    assert parse_save_every(timedelta(minutes=5)) == EveryInterval(timedelta(minutes=5))
    assert parse_save_every("auto") == AutoInterval()
    assert parse_save_every(policy) is policy


@pytest.mark.parametrize("setting", [0, -5, True, 1.5, "often", None, timedelta(0), object()])
def test_a_setting_that_cannot_work_is_refused_by_name(setting):
    with pytest.raises(ConfigError, match="save_every"):
        parse_save_every(setting)


@pytest.mark.parametrize(
    "build",
    [
        AnyOf,
        lambda: AnyOf(EverySteps(1), 100),
        lambda: EverySteps(2.0),
        lambda: AutoInterval(prior=timedelta(0)),
        lambda: AutoInterval(first_after=60),
        lambda: AutoInterval(shortest=timedelta(days=2)),
    ],
)
def test_a_policy_that_cannot_work_is_refused(build):
    with pytest.raises(ConfigError, match="save_every"):
        build()


def test_a_number_of_epochs_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="full_every"):
        EveryEpochs(0)
