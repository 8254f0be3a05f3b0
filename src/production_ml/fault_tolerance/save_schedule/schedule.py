"""The schedule of saves: one policy, followed by all ranks at the same steps, with no message while nothing is due."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import CheckpointError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.agreement import gather_json, told
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory, own_failure_history
from production_ml.fault_tolerance.save_schedule.interval import IntervalChoice
from production_ml.fault_tolerance.save_schedule.pace import Mark, Pace
from production_ml.fault_tolerance.save_schedule.policies import Progress, SavePolicy
from production_ml.fault_tolerance.save_schedule.save_cost import SaveCost
from production_ml.training.ranks import rank_and_world_size

_LOG: Final = logging.getLogger(__name__)
_WORTH_TELLING: Final = 0.2
"""An interval that changes by a smaller share is not told again."""
_AT_ONCE: Final = -1
Agree = Callable[[Callable[[], Any]], Any]
"""Calls what it is given on rank 0 alone, and gives its answer, in JSON, to all ranks."""


def leader_decides(propose: Callable[[], Any]) -> Any:
    """What `propose` answers on rank 0, on every rank. All ranks have to call it.

    Raises:
        CheckpointError: It failed on rank 0, or the ranks are in different calls.
        Exception: It failed, on rank 0 itself.
    """
    rank, _ = rank_and_world_size()
    answer: dict[str, Any] = {}
    problem: Exception | None = None
    if rank == 0:
        try:
            answer = {"proposal": propose()}
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
            problem = error
            answer = {"problem": told(error)}
    first = gather_json(answer, call="the save schedule")[0]
    if problem is not None:
        raise problem
    if "problem" in first:
        raise CheckpointError(f"Rank 0 cannot tell when to save: {first['problem']}", meaning="Nothing was saved.")
    return first["proposal"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens next; the same on all ranks."""

    step: int
    is_save: bool
    """If not, it is a moment for the ranks to look at the clock together."""


class SaveSchedule:
    """Tells at which steps to save. Every rank makes one, and asks it after every step.

    A policy that counts time is turned into a number of steps by rank 0, from the pace since the last save, and the
    ranks agree on it when they save, as they talk then anyway. A pace is trusted for twice the steps that it was
    measured over. So before the first save the ranks look at rank 0's clock after 1, 3, 7, 15, … steps, until the save
    is near enough to be foreseen. A training that becomes slower is followed from the next save on.

    Args:
        policy: When to save.
        agree: Gives rank 0's answer to all ranks.
        clock: Where times come from.
        read_history: Tells the failures of the attempts before this one; asked once, on rank 0.
    """

    def __init__(
        self,
        policy: SavePolicy,
        *,
        agree: Agree = leader_decides,
        clock: Clock = SYSTEM_CLOCK,
        read_history: Callable[[], FailureHistory] = own_failure_history,
    ) -> None:
        self._policy = policy
        self._agree = agree
        self._clock = clock
        self._read_history = read_history
        self._history: FailureHistory | None = None
        self._made_seconds = clock.monotonic_seconds()
        self._resumed_step: int | None = None
        self._pace: Pace | None = None
        self._cost = SaveCost()
        self._is_written = False
        self._told: IntervalChoice | None = None
        self._plan = _Plan(0, is_save=False)
        self._wake_step = _AT_ONCE

    @property
    def interval(self) -> IntervalChoice | None:
        """The interval that the policy chose by itself, on rank 0; None where the user chose, and before the first."""
        return self._told

    def is_due(self, step: int) -> bool:
        """Whether to save now, after `step` steps. It says so until `saved` or `missed` is called."""
        return step >= self._wake_step and self._wake(step)

    def resumed(self, step: int) -> None:
        """Training goes on from `step`, which was loaded."""
        self._resumed_step, self._pace, self._wake_step = step, None, _AT_ONCE

    def saved(self, step: int, *, stall_seconds: float) -> None:
        """All ranks have saved `step`, on schedule or not, for which training stood still for `stall_seconds`."""
        now = self._now(step)
        self._is_written = False
        self._cost.saved(now, stall_seconds)
        self._count_from(now)

    def missed(self, step: int) -> None:
        """All ranks know that `step` was not saved; the next time is as far away as after a save."""
        self._count_from(self._now(step))

    def written(self) -> None:
        """The newest save is durable. It is for the thread that wrote it, on rank 0, and costs the training nothing."""
        self._is_written = True
        self._wake_step = _AT_ONCE

    def _wake(self, step: int) -> bool:
        pace = self._pace or self._begin(step)
        if self._is_written:
            self._is_written = False
            self._cost.written(self._now(step))
        self._wake_step = self._plan.step
        if step >= self._plan.step and not self._plan.is_save:
            now = self._now(step)
            pace.look(now)
            self._agree_on_plan(pace, now)
        return self._plan.is_save and step >= self._plan.step

    def _begin(self, step: int) -> Pace:
        """Time counts from the end of this process's first step, which may have compiled the model."""
        self._pace = pace = Pace(self._now(step))
        if self._policy.is_timed:
            self._follow(_Plan(step + 1, is_save=False))
        else:
            # The first call may come at a step that is due already.
            before = max(0, step - 1) if self._resumed_step is None else self._resumed_step
            self._follow(self._untimed_plan(before))
        return pace

    def _count_from(self, now: Mark) -> None:
        if self._pace is None:
            self._pace = Pace(now)
        self._pace.save(now)
        if self._policy.is_timed:
            self._agree_on_plan(self._pace, now)
        else:
            self._follow(self._untimed_plan(now.step))

    def _agree_on_plan(self, pace: Pace, now: Mark) -> None:
        self._follow(_Plan(**self._agree(lambda: self._propose(pace, now))))

    def _follow(self, plan: _Plan) -> None:
        self._plan = plan
        # What was written while the ranks talked still waits for its step boundary.
        self._wake_step = _AT_ONCE if self._is_written else plan.step

    def _untimed_plan(self, last_step: int) -> _Plan:
        due = self._policy.next_step(Progress(step=last_step, last_step=last_step))
        return _Plan(sys.maxsize if due is None else max(due, last_step + 1), is_save=True)

    def _propose(self, pace: Pace, now: Mark) -> dict[str, Any]:
        """On rank 0: the next save if it can be foreseen, else when to look again, each time twice as far away."""
        progress = self._progress(pace, now)
        due = self._policy.next_step(progress)
        self._tell(self._policy.chosen_interval(progress))
        again = now.step + max(1, 2 * pace.measured_steps)
        if due is None or due > again:
            return {"step": again, "is_save": False}
        return {"step": max(due, now.step + 1), "is_save": True}

    def _progress(self, pace: Pace, now: Mark) -> Progress:
        if self._history is None:
            self._history = self._read_history()
        observed_seconds = self._history.observed_seconds + now.seconds - self._made_seconds
        return Progress(
            step=now.step,
            last_step=pace.last.step,
            seconds_since=now.seconds - pace.last.seconds,
            seconds_per_step=pace.seconds_per_step,
            save_cost_seconds=self._cost.seconds,
            history=replace(self._history, observed_seconds=observed_seconds),
        )

    def _tell(self, choice: IntervalChoice | None) -> None:
        if choice is None or choice.save_cost is None:
            return
        if self._told is None or abs(choice.interval / self._told.interval - 1) > _WORTH_TELLING:
            self._told = choice
            log_event(_LOG, "checkpoint_interval", f"Saving {choice}", **choice.facts())

    def _now(self, step: int) -> Mark:
        return Mark(step, self._clock.monotonic_seconds())
