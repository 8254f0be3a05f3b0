"""All ranks save at the same steps, talk only when they save or seldom before, and follow the policy."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.structured_logging import subscribe, unsubscribe
from production_ml.fault_tolerance.save_schedule import (
    AnyOf,
    AutoInterval,
    EveryInterval,
    EverySteps,
    SavePolicy,
    SaveSchedule,
)
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory
from production_ml.testing.clock import FakeClock

MINUTE = timedelta(minutes=1)


class Ranks:
    """Ranks whose clocks run differently; rank 0's answers reach the others, and every message is counted."""

    def __init__(self, policy: SavePolicy, *, world_size: int = 1, history: FailureHistory | None = None) -> None:
        self.clocks = [FakeClock() for _ in range(world_size)]
        self.answers: list[list[Any]] = [[] for _ in range(world_size)]
        self.talked_at: list[int] = []
        self.saved_at: list[int] = []
        self.step = 0
        self.schedules = [
            SaveSchedule(
                policy, agree=self._agree_as(rank), clock=clock, read_history=lambda: history or FailureHistory()
            )
            for rank, clock in enumerate(self.clocks)
        ]

    def _agree_as(self, rank: int) -> Callable[[Callable[[], Any]], Any]:
        def agree(propose: Callable[[], Any]) -> Any:
            if rank == 0:
                self.talked_at.append(self.step)
                for answers in self.answers:
                    answers.append(propose())
            return self.answers[rank].pop(0)

        return agree

    def run(self, steps: Iterable[int], *, seconds: float = 1.0, stall_seconds: float = 0.0) -> Ranks:
        for step in steps:
            self.step = step
            for rank, clock in enumerate(self.clocks):
                clock.advance(seconds * (rank + 1))
            due = [schedule.is_due(step) for schedule in self.schedules]
            assert len(set(due)) == 1
            if due[0]:
                self.saved_at.append(step)
                for schedule, clock in zip(self.schedules, self.clocks, strict=True):
                    clock.advance(stall_seconds)
                    schedule.saved(step, stall_seconds=stall_seconds)
                self.schedules[0].written()
        return self


def test_every_n_steps_needs_no_message_at_all():
    ranks = Ranks(EverySteps(100), world_size=2).run(range(1, 351))

    assert ranks.saved_at == [100, 200, 300]
    assert ranks.talked_at == []


def test_a_resumed_run_saves_at_the_same_steps_as_if_it_had_not_been_interrupted():
    ranks = Ranks(EverySteps(100))
    ranks.schedules[0].resumed(250)

    assert ranks.run(range(251, 520)).saved_at == [300, 400, 500]


def test_the_first_call_may_be_due_and_step_0_is_not():
    assert Ranks(EverySteps(100)).run([100]).saved_at == [100]
    assert Ranks(EverySteps(100)).run([0]).saved_at == []


def test_a_loop_that_asks_seldom_saves_at_the_first_chance():
    assert Ranks(EverySteps(100)).run(range(0, 500, 30)).saved_at == [120, 210, 300, 420]


def test_an_interval_is_kept_to_by_steps_that_all_ranks_agree_on():
    ranks = Ranks(EveryInterval(MINUTE), world_size=3).run(range(1, 400))

    first, *later = ranks.saved_at
    assert first == pytest.approx(60, abs=2)
    assert [after - before for before, after in zip(ranks.saved_at, later, strict=False)] == [60] * len(later)


def test_ranks_talk_at_doubling_distances_before_the_first_save_and_then_when_they_save():
    ranks = Ranks(EveryInterval(timedelta(hours=1))).run(range(1, 15_000))

    before = [step for step in ranks.talked_at if step < ranks.saved_at[0]]
    assert before == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert ranks.talked_at[len(before) :] == ranks.saved_at


def test_a_slow_first_step_does_not_bring_a_save_forward():
    ranks = Ranks(EveryInterval(timedelta(minutes=10)))
    ranks.run([1, 2], seconds=60.0).run(range(3, 6000), seconds=0.1)

    assert ranks.saved_at[0] == pytest.approx(5400, rel=0.05)


def test_training_that_becomes_slower_is_followed_from_the_next_save_on():
    ranks = Ranks(EveryInterval(MINUTE)).run(range(1, 241)).run(range(241, 600), seconds=10.0)

    distances = [after - before for before, after in zip(ranks.saved_at, ranks.saved_at[1:], strict=False)]
    assert distances[:2] == [60, 60]
    assert distances[-5:] == [6] * 5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [EverySteps(7), EveryInterval(MINUTE), AutoInterval(), AnyOf(EverySteps(50), EveryInterval(MINUTE))]
    ),
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 100), st.floats(0, 5)), max_size=6),
    st.integers(0, 1000),
)
def test_ranks_never_differ_never_talk_twice_in_a_step_and_save_no_step_twice(policy, stretches, first_step):
    ranks = Ranks(policy, world_size=2)
    step = first_step
    for count, seconds, stall_seconds in stretches:
        ranks.run(range(step, step + count), seconds=seconds, stall_seconds=stall_seconds)
        step += count

    assert len(set(ranks.talked_at)) == len(ranks.talked_at)
    assert len(set(ranks.saved_at)) == len(ranks.saved_at)
    assert ranks.answers == [[], []]


def test_the_automatic_interval_settles_at_the_optimum_of_what_saves_cost():
    ranks = Ranks(AutoInterval()).run(range(1, 6000), stall_seconds=0.5)

    first, second, third = ranks.saved_at[:3]
    assert first == pytest.approx(60, abs=3)
    assert second - first == pytest.approx(294, rel=0.03)  # sqrt(2 · 0.5 s · 1 day)
    assert third - second == pytest.approx(294, rel=0.03)


def test_the_chosen_interval_is_shown_and_logged_and_told_anew_only_when_it_changes():
    events: list[Any] = []
    subscribe(events.append)
    ranks = Ranks(AutoInterval(), history=FailureHistory(failures=23, observed_seconds=0))
    ranks.run(range(1, 3000), stall_seconds=0.5)
    ranks.run(range(3000, 12_000), stall_seconds=5.0)
    unsubscribe(events.append)

    chosen = [event for event in events if event.name == "checkpoint_interval"]
    assert chosen[0].message.startswith("Saving every 60 s: a save costs 0.5 s, and a failure is expected every")
    assert chosen[0].fields["failures"] == 23
    assert len(chosen) == 2 < len(ranks.saved_at) - 2
    assert ranks.schedules[0].interval.save_cost == timedelta(seconds=5)


def test_a_save_that_the_user_makes_between_counts():
    ranks = Ranks(EveryInterval(MINUTE)).run(range(1, 51))
    ranks.schedules[0].saved(50, stall_seconds=0.0)

    assert ranks.run(range(51, 200)).saved_at[0] == 110


def test_a_save_that_could_not_be_made_is_not_tried_again_at_once():
    clock = FakeClock()
    schedule = SaveSchedule(EverySteps(100), clock=clock)
    assert schedule.is_due(100)

    schedule.missed(100)

    assert next(step for step in range(101, 301) if schedule.is_due(step)) == 200


def test_it_stays_due_until_it_was_saved():
    schedule = SaveSchedule(EverySteps(100))

    assert [schedule.is_due(step) for step in (99, 100, 101)] == [False, True, True]


def test_asking_when_nothing_is_due_costs_no_more_than_a_few_calls_that_do_nothing():
    schedule = SaveSchedule(EverySteps(10**9))
    schedule.is_due(1)

    def nothing(step: int) -> bool:
        return False

    # Relative, so that a busy machine does not matter: the best of many rounds of each.
    asked = min(timeit.repeat(lambda: schedule.is_due(2), number=2000, repeat=20))
    called = min(timeit.repeat(lambda: nothing(2), number=2000, repeat=20))
    assert asked < 10 * called
