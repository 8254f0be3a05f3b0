"""The interval is Young's, is refused where no interval helps, and is told in words with what it was chosen by."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory
from production_ml.fault_tolerance.save_schedule.interval import IntervalChoice, save_interval


def test_a_save_of_half_a_second_and_a_failure_a_day_make_about_five_minutes():
    interval = save_interval(timedelta(seconds=0.5), timedelta(days=1))

    assert interval.total_seconds() == pytest.approx((2 * 0.5 * 86400) ** 0.5)


@given(st.floats(0.01, 100), st.floats(1_000, 1e6), st.floats(0.2, 5).filter(lambda factor: abs(factor - 1) > 0.05))
def test_no_other_interval_loses_less_time(cost, between, factor):
    best = save_interval(timedelta(seconds=cost), timedelta(seconds=between)).total_seconds()

    def lost_share(interval: float) -> float:
        return cost / interval + interval / 2 / between  # saving, and half an interval redone per failure

    assert lost_share(best) < lost_share(best * factor)


@pytest.mark.parametrize("cost", [timedelta(hours=13), timedelta(hours=12), timedelta(seconds=-1)])
def test_a_cost_for_which_no_interval_helps_is_refused(cost):
    with pytest.raises(ConfigError, match="save_cost"):
        save_interval(cost, timedelta(days=1))


def test_a_choice_is_told_with_what_it_was_chosen_by():
    choice = IntervalChoice(
        interval=timedelta(seconds=294),
        save_cost=timedelta(seconds=0.5),
        mean_time_between_failures=timedelta(days=1),
        history=FailureHistory(failures=1, observed_seconds=1800),
    )

    assert str(choice) == (
        "every 4.9 minutes: a save costs 0.5 s, and a failure is expected every 24 hours "
        "(1 failure in 30 minutes so far)"
    )
    assert choice.facts()["interval_seconds"] == 294
