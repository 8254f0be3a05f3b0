"""How long a rank may be silent."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.pulse import Beat, Phase
from production_ml.fault_tolerance.recovery.hang.limits import (
    HangLimits,
    StepTimes,
    parse_hang_timeout,
    silent_seconds,
)

LIMITS = HangLimits(floor_seconds=1.0, multiple=2.0, paused_seconds=600.0, starting_seconds=1800.0)


def learned(*times: float, limits: HangLimits = LIMITS) -> StepTimes:
    steps = StepTimes(limits)
    for number, time in enumerate(times, start=1):
        steps.see(Beat(number, Phase.TRAINING, time, time))
    return steps


def test_the_limit_is_a_multiple_of_the_median_step():
    steps = learned(10, 20, 30, 40, 50)

    assert steps.typical_seconds == 10
    assert steps.limit_seconds(Phase.TRAINING) == 20


def test_one_long_step_raises_the_limit_no_further_than_needed_to_bear_with_it_again():
    steps = learned(10, 20, 30, 130, 140, 150)

    assert steps.typical_seconds == 10
    assert steps.limit_seconds(Phase.TRAINING) == 150


def test_short_steps_have_the_floor():
    assert learned(1.01, 1.02, 1.03, 1.04).limit_seconds(Phase.TRAINING) == 1.0


def test_steps_between_two_looks_count_with_their_mean():
    steps = StepTimes(LIMITS)

    for number, time in ((1, 2.0), (5, 22.0), (9, 42.0), (13, 62.0)):
        steps.see(Beat(number, Phase.TRAINING, time, time))

    assert steps.typical_seconds == 5.0


def test_a_pause_that_was_said_is_no_step_time():
    steps = learned(1, 2, 3, 4)

    steps.see(Beat(4, Phase.PAUSED, 4.0, 5.0))
    steps.see(Beat(5, Phase.TRAINING, 500.0, 500.0))

    assert steps.limit_seconds(Phase.TRAINING) == 2.0


def test_start_and_pause_have_limits_of_their_own():
    steps = learned(1, 2, 3, 4)

    assert steps.limit_seconds(Phase.STARTING) == 1800.0
    assert steps.limit_seconds(Phase.PAUSED) == 600.0


def test_before_enough_is_learned_a_rank_has_the_time_of_a_pause():
    assert learned(1, 2).limit_seconds(Phase.TRAINING) == 600.0


def test_what_was_learned_outlives_a_restart_and_the_restart_is_no_step():
    steps = learned(1, 2, 3, 4)

    steps.begin_attempt()
    steps.see(Beat(1, Phase.TRAINING, 900.0, 900.0))
    steps.see(Beat(2, Phase.TRAINING, 901.0, 901.0))

    assert steps.limit_seconds(Phase.TRAINING) == 2.0


def test_silence_counts_from_the_newest_word():
    assert silent_seconds(Beat(3, Phase.TRAINING, 5.0, 5.0), 12.0) == 7.0
    assert silent_seconds(Beat(3, Phase.PAUSED, 5.0, 8.0), 12.0) == 4.0
    assert silent_seconds(Beat(0, Phase.STARTING, 0.0, 0.0), 12.0) == 0.0


def test_the_flag_takes_auto_a_floor_seconds_and_off():
    assert parse_hang_timeout("off") is None
    assert parse_hang_timeout("auto") == HangLimits()
    assert parse_hang_timeout("auto:5") == HangLimits(floor_seconds=5.0)
    assert learned(1, 2, limits=parse_hang_timeout("7.5") or LIMITS).limit_seconds(Phase.TRAINING) == 7.5


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf", "auto:", "auto:0"])
def test_another_timeout_is_refused(text):
    with pytest.raises(ConfigError, match="--hang-timeout"):
        parse_hang_timeout(text)


def test_limits_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="floor_seconds"):
        HangLimits(floor_seconds=0)
