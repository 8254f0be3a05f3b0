"""Where a fault strikes is a matter of the seed, and leaves something to lose and something to do."""

from __future__ import annotations

from production_ml.drill.runner import choose_strike
from production_ml.drill.target import Target
from production_ml.drill.verdict import Course


def test_a_fault_strikes_in_the_middle_third_and_the_same_seed_strikes_there_again(tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    target = Target(script=script, workers=3, started_in=tmp_path)
    course = Course(first_metrics_at=0.0, last_metrics_at=1.0, steps=frozenset(range(10, 100)), steps_redone=0)

    strikes = [choose_strike(target, course, seed) for seed in range(200)]

    assert {strike.rank for strike in strikes} == {0, 1, 2}
    assert all(39 <= strike.step <= 70 for strike in strikes)
    assert [strike.step for strike in strikes] == [choose_strike(target, course, seed).step for seed in range(200)]
