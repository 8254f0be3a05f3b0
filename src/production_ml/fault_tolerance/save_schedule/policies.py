"""When the next save is due: small policies that answer with a step, from what is known so far."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.save_schedule.failure_history import FailureHistory, mean_time_between_failures
from production_ml.fault_tolerance.save_schedule.interval import IntervalChoice, save_interval

_NO_HISTORY: Final = FailureHistory()
_FARTHEST_STEPS: Final = 1e15
"""Farther than any training goes; a quotient of two measured times may be infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a policy decides by."""

    step: int
    """The step that was completed just now."""
    last_step: int
    """The step of the last save, or where this process began."""
    seconds_since: float = 0.0
    """Since that save ended, or since this process's first step."""
    seconds_per_step: float | None = None
    """The pace; None while it is not known."""
    save_cost_seconds: float | None = None
    """How much longer training takes for a save; None before there was one."""
    history: FailureHistory = _NO_HISTORY


class SavePolicy(Protocol):
    """Answers in steps, also where it counts time: a step is what all ranks can act on without a message."""

    @property
    def is_timed(self) -> bool:
        """Whether the answer depends on clocks: then it is rank 0's that counts, and ranks talk when they save."""
        ...

    def next_step(self, progress: Progress) -> int | None:
        """The step at which the next save is due, as far as can be told now; None where it cannot (yet)."""
        ...

    def chosen_interval(self, progress: Progress) -> IntervalChoice | None:
        """The interval that it has chosen by itself, for people to see; None where the user chose."""
        ...


@dataclass(frozen=True, slots=True)
class EverySteps:
    """At each multiple of `n` steps, whatever step a run began at."""

    n: int

    def __post_init__(self) -> None:
        _check_count("save_every", self.n, "steps")

    @property
    def is_timed(self) -> bool:
        return False

    def next_step(self, progress: Progress) -> int | None:
        return (progress.last_step // self.n + 1) * self.n

    def chosen_interval(self, progress: Progress) -> IntervalChoice | None:  # noqa: ARG002 - the protocol's
        return None


@dataclass(frozen=True, slots=True)
class EveryInterval:
    """Each time that `interval` has passed since the last save, as near as the pace of training lets it foresee."""

    interval: timedelta

    def __post_init__(self) -> None:
        _check_duration("save_every", self.interval)

    @property
    def is_timed(self) -> bool:
        return True

    def next_step(self, progress: Progress) -> int | None:
        return _step_after(self.interval, progress)

    def chosen_interval(self, progress: Progress) -> IntervalChoice | None:  # noqa: ARG002 - the protocol's
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoInterval:
    """At the interval that loses the least time, by what saves cost here and how often this run fails.

    Args:
        prior: The mean time between failures that is assumed of a run of which nothing is known; it counts as one
            failure in that time, so the run's own record soon outweighs it. One a day: large clusters see more (Llama
            3 on 16,384 GPUs: one every 3 hours, arXiv 2407.21783), a single machine fewer.
        first_after: When to save first, since only a save shows what saves cost.
        shortest: No shorter interval is chosen, even if a save seems to cost nothing.
        longest: No longer interval is chosen.

    Raises:
        ConfigError: One of them is not longer than nothing, or `shortest` is longer than `longest`.
    """

    prior: timedelta = timedelta(days=1)
    first_after: timedelta = timedelta(minutes=1)
    shortest: timedelta = timedelta(seconds=10)
    longest: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        for field in ("prior", "first_after", "shortest", "longest"):
            _check_duration(f"save_every.{field}", getattr(self, field))
        if self.shortest > self.longest:
            raise ConfigError("save_every.shortest", self.shortest, f"must not be longer than longest={self.longest}")

    @property
    def is_timed(self) -> bool:
        return True

    def next_step(self, progress: Progress) -> int | None:
        return _step_after(self.chosen_interval(progress).interval, progress)

    def chosen_interval(self, progress: Progress) -> IntervalChoice:
        between = mean_time_between_failures(progress.history, self.prior)
        known = progress.save_cost_seconds
        cost = None if known is None else timedelta(seconds=known)
        if cost is None:
            interval = self.first_after
        elif cost * 2 >= between:
            interval = between  # Daly's answer for saves so dear; Young's optimum reaches it just there
        else:
            interval = save_interval(cost, between)
        return IntervalChoice(
            interval=min(max(interval, self.shortest), self.longest),
            save_cost=cost,
            mean_time_between_failures=between,
            history=progress.history,
        )


class AnyOf:
    """Whenever one of several policies wants a save; the others count on from that save too.

    Raises:
        ConfigError: It is given no policy, or something that is none.
    """

    def __init__(self, *policies: SavePolicy) -> None:
        if not policies:
            raise ConfigError("save_every", policies, "AnyOf needs at least one policy")
        for policy in policies:
            _check_policy(policy)
        self._policies = policies

    @property
    def is_timed(self) -> bool:
        return any(policy.is_timed for policy in self._policies)

    def next_step(self, progress: Progress) -> int | None:
        steps = [policy.next_step(progress) for policy in self._policies]
        return min((step for step in steps if step is not None), default=None)

    def chosen_interval(self, progress: Progress) -> IntervalChoice | None:
        chosen = (policy.chosen_interval(progress) for policy in self._policies)
        return next((choice for choice in chosen if choice is not None), None)

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self._policies))})"


@dataclass(frozen=True, slots=True)
class EveryEpochs:
    """A full checkpoint at the end of each `n`-th epoch."""

    n: int = 1

    def __post_init__(self) -> None:
        _check_count("full_every", self.n, "epochs")

    def is_due(self, epochs_ended: int) -> bool:
        """Whether the epoch that has just ended, the `epochs_ended`-th counted from 1, calls for one."""
        return epochs_ended > 0 and epochs_ended % self.n == 0


def parse_save_every(save_every: Any) -> SavePolicy:
    """The policy that a user's setting means: a number of steps, a timedelta, `"auto"`, or a policy itself.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(save_every, timedelta):
        return EveryInterval(save_every)
    if isinstance(save_every, str):
        if save_every == "auto":
            return AutoInterval()
        _refuse(save_every)
    if hasattr(save_every, "next_step"):
        _check_policy(save_every)
        policy: SavePolicy = save_every
        return policy
    if isinstance(save_every, bool) or not hasattr(save_every, "__index__"):
        _refuse(save_every)
    return EverySteps(operator.index(save_every))


def _step_after(interval: timedelta, progress: Progress) -> int | None:
    """The first step that ends when `interval` has passed."""
    if progress.seconds_per_step is None:
        return None
    left_seconds = max(0.0, interval.total_seconds() - progress.seconds_since)
    # A pace of nothing is a clock that did not move: then the next step has to tell.
    steps = left_seconds / progress.seconds_per_step if progress.seconds_per_step > 0 else 1.0
    return progress.step + max(1, math.ceil(min(steps, _FARTHEST_STEPS) - 1e-6))


def _check_policy(policy: object) -> None:
    if not all(hasattr(policy, verb) for verb in ("is_timed", "next_step", "chosen_interval")):
        _refuse(policy)


def _refuse(save_every: object) -> None:
    problem = (
        "must be a number of steps, a timedelta, 'auto' or a policy such as AnyOf(EverySteps(500), AutoInterval())"
    )
    raise ConfigError("save_every", save_every, problem)


def _check_count(field: str, n: object, unit: str) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(field, n, f"must be a whole number of {unit}, at least 1")


def _check_duration(field: str, duration: object) -> None:
    if not isinstance(duration, timedelta) or duration <= timedelta(0):
        raise ConfigError(field, duration, "must be a timedelta longer than nothing")
