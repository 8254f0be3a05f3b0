"""What to keep: small policies that look at all checkpoints and answer with the steps worth keeping."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, Protocol

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointInfo, CheckpointPlace

_LOG: Final = logging.getLogger(__name__)


class KeepPolicy(Protocol):
    """Policies add up: a step stays while any policy wants it, so a new rule can only ever save more.

    `str(policy)` says in a few words why a step that it wants is kept.
    """

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepLast:
    """Keep the `n` newest steps."""

    n: int

    def __post_init__(self) -> None:
        _check_count("keep_last_n", self.n, "the newest checkpoint is what a restart needs")

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        return set(sorted(checkpoint.step for checkpoint in checkpoints)[-self.n :])

    def __str__(self) -> str:
        return f"among the {self.n} newest"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepBest:
    """Keep the `n` steps with the best values of `metric`; of equals the earliest, and never one that is no number."""

    metric: str
    mode: Literal["min", "max"] = "min"
    n: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError("best_mode", self.mode, "must be 'min' or 'max'")
        _check_count("keep_best_n", self.n, "to keep no best checkpoint, leave this policy out")

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        return set(self.best_steps(checkpoints))

    def best_step(self, checkpoints: Sequence[CheckpointInfo]) -> int | None:
        """The best step, None while no checkpoint has the metric."""
        return next(iter(self.best_steps(checkpoints)), None)

    def best_steps(self, checkpoints: Sequence[CheckpointInfo]) -> list[int]:
        """The best steps, the best of all first; fewer than `n` while not so many have the metric."""
        sign = 1 if self.mode == "min" else -1
        scored = [
            (sign * value, checkpoint.step)
            for checkpoint in checkpoints
            if not math.isnan(value := checkpoint.metrics.get(self.metric, math.nan))
        ]
        return [step for _, step in sorted(scored)[: self.n]]

    def __str__(self) -> str:
        extreme = "lowest" if self.mode == "min" else "highest"
        return f"the {extreme} {self.metric}" if self.n == 1 else f"among the {self.n} with the {extreme} {self.metric}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepEvery:
    """Keep milestones: the first step at or past each multiple of `n`.

    Saves by the clock seldom fall on a multiple; where they do, the milestones are the multiples themselves. Which
    steps are milestones does not change as others are removed.
    """

    n: int

    def __post_init__(self) -> None:
        _check_count("keep_every", self.n, "it is a number of steps")

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        # Before the first multiple there is no milestone, or the very first save would stay for ever.
        return _first_of_each({c.step: c.step // self.n for c in checkpoints if c.step >= self.n})

    def __str__(self) -> str:
        return f"a milestone: the first at or past a multiple of {self.n}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepEveryInterval:
    """Keep the first step of each `interval` of the wall clock: one an hour, or one a day."""

    interval: timedelta

    def __post_init__(self) -> None:
        if not isinstance(self.interval, timedelta) or self.interval <= timedelta(0):
            raise ConfigError("keep_every_interval", self.interval, "must be a timedelta longer than nothing")

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        seconds = self.interval.total_seconds()
        return _first_of_each({c.step: math.floor(c.created_at / seconds) for c in checkpoints})

    def __str__(self) -> str:
        return f"the first of its {self.interval}"


def explain(checkpoints: Sequence[CheckpointInfo], policies: Sequence[KeepPolicy]) -> dict[int, list[str]]:
    """For each step, oldest first, why it is kept; a step without a reason is one to remove.

    Args:
        checkpoints: Those that could be loaded: a damaged one must not take the place of a good one.
        policies: Each may want any of them. The newest is kept whatever they say.
    """
    reasons: dict[int, list[str]] = {step: [] for step in sorted(checkpoint.step for checkpoint in checkpoints)}
    if reasons:
        reasons[max(reasons)].append("the newest")
    for policy in policies:
        for step in policy(checkpoints) & reasons.keys():
            reasons[step].append(str(policy))
    return reasons


def steps_to_remove(checkpoints: Sequence[CheckpointInfo], policies: Sequence[KeepPolicy]) -> set[int]:
    """The steps that no policy wants; the newest is never among them."""
    return {step for step, reasons in explain(checkpoints, policies).items() if not reasons}


class Pruning:
    """Applies policies to a directory. What is damaged, or being read, is never removed.

    A checkpoint that is not whole counts for nothing: it must not stand for the newest, or for the best, where a sound
    one could. It stays as it is, for the next load to set aside.
    """

    def __init__(
        self, directory: CheckpointPlace, policies: Sequence[KeepPolicy], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._directory = directory
        self._policies = policies
        self._clock = clock
        self._has_told_of_newer = False
        self._told_of_broken: set[int] = set()

    def explain(self) -> dict[int, list[str]]:
        """For each step, oldest first, why it would be kept now; a step without a reason would be removed.

        Raises:
            OSError: The directory cannot be listed.
        """
        whole = self._whole()
        reasons = explain(whole, self._policies)
        for step in self._directory.steps():
            if step not in reasons:
                reasons[step] = ["damaged or not whole: the next load sets it aside"]
            elif self._directory.is_being_read(step):
                reasons[step].append("being read")
        return dict(sorted(reasons.items()))

    def prune(self, *, just_committed: int | None = None) -> list[int]:
        """Remove what no policy wants. That some of it stays is worth a warning, not a failed save.

        Args:
            just_committed: The step that was saved just now, which stays even where an older run's steps are higher.

        Returns:
            The steps that were removed.
        """
        try:
            whole = self._whole()
        except OSError as problem:
            _LOG.warning("%s: cannot be listed, nothing was pruned (%s)", self._directory.url, problem.strerror)
            return []
        self._warn_of_newer(just_committed, max((checkpoint.step for checkpoint in whole), default=0))
        return self._remove(steps_to_remove(whole, self._policies) - {just_committed})

    def make_room(self, *, coming: int) -> list[int]:
        """Remove before a save what its commit would let go of anyway, and what dead saves left behind.

        The save may still fail, so the newest stays, and the best, whatever the coming one may bring: a disk with room
        for `keep_last_n` checkpoints, and no more, goes round.

        Returns:
            The steps that were removed.
        """
        try:
            self._directory.remove_leftovers()
            whole = self._whole()
        except OSError as problem:
            _LOG.warning("%s: cannot be listed, no room was made (%s)", self._directory.url, problem.strerror)
            return []
        steps = {checkpoint.step for checkpoint in whole}
        expected = CheckpointInfo(coming, {}, self._clock.wall_seconds())
        removable = steps_to_remove([*whole, expected] if coming not in steps else whole, self._policies)
        return self._remove(removable - {coming, max(steps, default=coming)})

    def _whole(self) -> list[CheckpointInfo]:
        checkpoints = self._directory.infos()
        whole = [checkpoint for checkpoint in checkpoints if self._directory.is_whole(checkpoint.step)]
        broken = {checkpoint.step for checkpoint in checkpoints} - {checkpoint.step for checkpoint in whole}
        for step in sorted(broken - self._told_of_broken):
            path = self._directory.committed(step)
            # A checkpoint that was removed meanwhile, by hand or by another process, is not broken.
            if self._directory.identity(step) is not None:
                _LOG.warning("%s: a file is missing or has another size; it counts as damaged. Check the disk.", path)
                self._told_of_broken.add(step)
        return whole

    def _remove(self, steps: set[int]) -> list[int]:
        removed = []
        for step in sorted(steps):
            try:
                if self._directory.remove(step):
                    removed.append(step)
                else:
                    _LOG.debug("%s: stays: it is read, or had lost its name", self._directory.committed(step))
            except OSError as problem:
                _LOG.warning("%s: cannot be removed (%s)", self._directory.committed(step), problem.strerror)
        return removed

    def _warn_of_newer(self, just_committed: int | None, newest: int) -> None:
        if just_committed is not None and newest > just_committed and not self._has_told_of_newer:
            self._has_told_of_newer = True
            _LOG.warning(
                "step %d was saved to %s, which holds a higher step, %d: a restart would resume from that one. "
                "Give each run a directory of its own, or call load_latest() before training.",
                just_committed,
                self._directory.url,
                newest,
            )


def _first_of_each(group_of: Mapping[int, int]) -> set[int]:
    """Of each group the lowest step, given the group of every step."""
    first: dict[int, int] = {}
    for step in sorted(group_of):
        first.setdefault(group_of[step], step)
    return set(first.values())


def _check_count(field: str, n: object, why: str) -> None:
    if not isinstance(n, int) or isinstance(n, bool):
        raise ConfigError(field, n, "must be a whole number")
    if n < 1:
        raise ConfigError(field, n, f"must be at least 1: {why}")
