"""What to keep: small policies that look at all checkpoints and answer with the steps worth keeping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointInfo


class KeepPolicy(Protocol):
    """Policies add up: a step stays while any policy wants it, so a new rule can only ever save more."""

    def __call__(self, checkpoints: Sequence[CheckpointInfo]) -> set[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepLast:
    """Keep the `n` newest steps."""

    n: int

    def __post_init__(self) -> None:
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
