"""Ends training once a metric no longer improves, on all ranks at the same step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from production_ml.core.errors import ConfigError

_DUE: Final = "early_stopping/due"


class EarlyStopping:
    """Counts evaluations without improvement. A NaN is no improvement, and never the best.

    A rank's answer is `values()`; summed over ranks, `is_due` gives the same decision on each: one that wants to stop
    stops all.

    Args:
        patience: Evaluations in a row without improvement after which training ends, at least 1.
        min_delta: By how much a value has to be better than the best, in the metric's unit.
        mode: Whether smaller ("min") or larger ("max") is better.

    Raises:
        ConfigError: A value that cannot work.
    """

    def __init__(self, patience: int, *, min_delta: float = 0.0, mode: Literal["min", "max"] = "min") -> None:
        if patience < 1:
            raise ConfigError("patience", patience, "must be at least 1 evaluation")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigError("min_delta", min_delta, "must be a number of at least 0")
        if mode not in ("min", "max"):
            raise ConfigError("mode", mode, 'must be "min" or "max"')
        self._patience = patience
        self._min_delta = min_delta
        self._mode = mode
        self._best: float | None = None
        self._without_improvement = 0

    def update(self, value: float) -> None:
        """Tell of one evaluation."""
        if self._is_better(value):
            self._best, self._without_improvement = value, 0
        else:
            self._without_improvement += 1

    def values(self) -> dict[str, float]:
        """What this rank adds to the step's sum over ranks."""
        return {_DUE: float(self._without_improvement >= self._patience)}

    def is_due(self, sums: Mapping[str, float]) -> bool:
        """Whether training ends now."""
        return sums[_DUE] > 0

    def state_dict(self) -> dict[str, Any]:
        """The best value and the count, in JSON types."""
        return {"best": self._best, "without_improvement": self._without_improvement, "mode": self._mode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting.

        Raises:
            ConfigError: The state is of the other mode.
        """
        if state["mode"] != self._mode:
            raise ConfigError("mode", self._mode, f"the saved state counted with {state['mode']!r}")
        self._best, self._without_improvement = state["best"], state["without_improvement"]

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None:
            return True
        gain = self._best - value if self._mode == "min" else value - self._best
        return gain > self._min_delta
