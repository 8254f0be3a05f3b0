"""The pace is that of the newest stretch between two looks, or between two saves."""

from __future__ import annotations

from production_ml.fault_tolerance.save_schedule.pace import Mark, Pace


def test_before_a_step_was_made_no_pace_is_known():
    pace = Pace(Mark(10, 100.0))
    pace.look(Mark(10, 105.0))

    assert (pace.seconds_per_step, pace.measured_steps) == (None, 0)


def test_a_slow_beginning_is_forgotten_at_the_next_look():
    pace = Pace(Mark(10, 100.0))
    pace.look(Mark(11, 160.0))
    pace.look(Mark(13, 161.0))

    assert (pace.seconds_per_step, pace.measured_steps) == (0.5, 2)


def test_a_save_measures_all_since_the_one_before():
    pace = Pace(Mark(0, 0.0))
    pace.save(Mark(10, 10.0))
    pace.look(Mark(15, 11.0))
    pace.save(Mark(20, 30.0))

    assert (pace.seconds_per_step, pace.measured_steps) == (2.0, 10)
    assert pace.last == Mark(20, 30.0)


def test_two_saves_at_one_step_keep_the_pace():
    pace = Pace(Mark(0, 0.0))
    pace.save(Mark(10, 10.0))
    pace.save(Mark(10, 12.0))

    assert pace.seconds_per_step == 1.0
