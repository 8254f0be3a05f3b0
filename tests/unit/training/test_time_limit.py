"""Training ends when its time is up, counted over the attempts of a run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from production_ml.core.errors import ConfigError
from production_ml.testing.clock import FakeClock
from production_ml.training.time_limit import TimeLimit


def is_due(limit):
    return limit.is_due(limit.values())


def test_the_time_of_earlier_attempts_counts():
    clock = FakeClock()
    first = TimeLimit(timedelta(seconds=100), clock=clock, environ={})
    clock.advance(60)
    state = first.state_dict()
    clock.advance(1000)

    second = TimeLimit(timedelta(seconds=100), clock=clock, environ={})
    second.load_state_dict(state)
    clock.advance(39)
    before = is_due(second)
    clock.advance(1)

    assert (before, is_due(second)) == (False, True)


def test_it_ends_a_margin_before_slurm_ends_the_job():
    clock = FakeClock(wall_seconds=1000.0)
    limit = TimeLimit(None, margin=timedelta(seconds=20), clock=clock, environ={"SLURM_JOB_END_TIME": "1100"})
    clock.advance(79)
    before = is_due(limit)
    clock.advance(1)

    assert (before, is_due(limit)) == (False, True)


def test_wrong_durations_and_times_are_refused():
    with pytest.raises(ConfigError, match="max_time"):
        TimeLimit(timedelta(0), environ={})
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME"):
        TimeLimit(None, environ={"SLURM_JOB_END_TIME": "soon"})
