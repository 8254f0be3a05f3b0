"""A save's cost is its stall and what it slowed down, told apart from the steps' own time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.fault_tolerance.save_schedule.pace import Mark
from production_ml.fault_tolerance.save_schedule.save_cost import SaveCost


class Training:
    """Steps of a second, which a save beside them makes slower."""

    def __init__(self) -> None:
        self.cost = SaveCost()
        self.now = Mark(0, 0.0)

    def steps(self, count: int, *, seconds: float = 1.0) -> None:
        self.now = Mark(self.now.step + count, self.now.seconds + count * seconds)

    def save(self, stall_seconds: float) -> None:
        self.now = Mark(self.now.step, self.now.seconds + stall_seconds)
        self.cost.saved(self.now, stall_seconds)


def test_before_a_save_nothing_is_known_and_after_the_first_its_stall():
    training = Training()
    assert training.cost.seconds is None

    training.steps(5)
    training.save(0.25)

    assert training.cost.seconds == 0.25


@given(st.floats(0, 10), st.integers(0, 20), st.floats(1, 3), st.integers(1, 50))
def test_what_steps_beside_a_save_took_longer_is_part_of_its_cost(stall, busy_steps, slowness, free_steps):
    training = Training()
    for _ in range(3):
        training.save(stall)
        training.steps(busy_steps, seconds=slowness)
        training.cost.written(training.now)
        training.steps(free_steps)

    assert training.cost.seconds == pytest.approx(stall + busy_steps * (slowness - 1), abs=1e-6)


def test_one_slow_save_is_no_rule():
    training = Training()
    for stall in (9.0, 0.1, 0.1, 0.1, 0.1):
        training.save(stall)
        training.steps(10)

    assert training.cost.seconds == 0.1


def test_a_save_that_was_not_written_before_the_next_costs_the_wait_that_it_caused():
    training = Training()
    for _ in range(4):
        training.save(3.0)
        training.steps(10)

    assert training.cost.seconds == 3.0


def test_a_cost_is_never_below_nothing():
    training = Training()
    for _ in range(3):
        training.save(0.0)
        training.steps(5, seconds=0.9)
        training.cost.written(training.now)
        training.steps(5)

    assert training.cost.seconds == 0.0
