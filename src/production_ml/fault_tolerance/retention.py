"""What to keep: small policies that look at all checkpoints and answer with the steps worth keeping."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointInfo, CheckpointPlace

_LOG: Final = logging.getLogger(__name__)


class KeepPolicy(Protocol):
    """Policies add up: a step stays while any policy wants it, so a new rule can only ever save more."""

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepLast:
    """Keep the `n` newest steps."""

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int):
            raise ConfigError("keep_last_n", self.n, "must be a whole number")
        if self.n < 1:
            raise ConfigError(
                "keep_last_n", self.n, "must be at least 1: the newest checkpoint is what a restart needs"
            )

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        return set(sorted(checkpoint.step for checkpoint in checkpoints)[-self.n :])


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepBest:
    """Keep the step with the best value of `metric`; of equals the earliest, and never one that is not a number."""

    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError("best_mode", self.mode, "must be 'min' or 'max'")

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]:
        best = self.best_step(checkpoints)
        return set() if best is None else {best}

    def best_step(self, checkpoints: Sequence[CheckpointInfo]) -> int | None:
        """The best step, None while no checkpoint has the metric."""
        sign = 1 if self.mode == "min" else -1
        scored = [
            (sign * value, checkpoint.step)
            for checkpoint in checkpoints
            if not math.isnan(value := checkpoint.metrics.get(self.metric, math.nan))
        ]
        return min(scored)[1] if scored else None


def steps_to_remove(checkpoints: Sequence[CheckpointInfo], policies: Sequence[KeepPolicy]) -> set[int]:
    """The steps that no policy wants; the newest is never among them."""
    newest = {max((checkpoint.step for checkpoint in checkpoints), default=0)}
    kept = newest.union(*(policy(checkpoints) for policy in policies))
    return {checkpoint.step for checkpoint in checkpoints} - kept


class Pruning:
    """Applies policies to a directory after each commit. A checkpoint that cannot be judged is never removed."""

    def __init__(self, directory: CheckpointPlace, policies: Sequence[KeepPolicy]) -> None:
        self._directory = directory
        self._policies = policies
        self._has_told_of_newer = False

    def prune(self, *, just_committed: int) -> None:
        """Remove what no policy wants. That some of it stays is worth a warning, not a failed save."""
        try:
            checkpoints = self._directory.infos()
        except OSError as problem:
            _LOG.warning("%s: cannot be listed, nothing was pruned (%s)", self._directory.url, problem.strerror)
            return
        self._warn_of_newer(just_committed, max((checkpoint.step for checkpoint in checkpoints), default=0))
        for step in sorted(steps_to_remove(checkpoints, self._policies) - {just_committed}):
            try:
                self._directory.remove(step)
            except OSError as problem:
                _LOG.warning("%s: cannot be removed (%s)", self._directory.committed(step), problem.strerror)

    def _warn_of_newer(self, just_committed: int, newest: int) -> None:
        if newest > just_committed and not self._has_told_of_newer:
            self._has_told_of_newer = True
            _LOG.warning(
                "step %d was saved to %s, which holds step %d of an earlier run: a restart would resume from that one. "
                "Give each run a directory of its own, or call load_latest() before training.",
                just_committed,
                self._directory.url,
                newest,
            )
