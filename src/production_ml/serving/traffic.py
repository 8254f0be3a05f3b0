"""The traffic split: which of several versions answers a request, as a pure function of weights and one number."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import xxhash

from production_ml.core.errors import ConfigError

_TWO_TO_64: Final = float(2**64)


class TrafficSplit:
    """Shares the interval [0, 1) between choices, each as wide as its weight says, in the order they are given.

    Where a weight changes, only the points that its border moves over change their choice: with 80:20 made 90:10, half
    of the second choice's sticky clients stay, and nobody else moves.

    Args:
        weights: One for each choice, in any unit; 0 for a choice that is only asked for by name.

    Raises:
        ConfigError: A weight is negative or not finite, or no weight is positive.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        for weight in weights:
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError("weight", weight, "must be a number from 0 up")
        total = sum(weights)
        if not (0 < total < math.inf):
            raise ConfigError("weight", list(weights), "leaves no version to answer: at least one must be above 0")
        self.shares = tuple(weight / total for weight in weights)
        """The part of the traffic that each choice gets; they add up to 1."""
        self._upper_ends = list(accumulate(self.shares))
        self._last = max(index for index, weight in enumerate(weights) if weight > 0)

    def choose(self, point: float) -> int:
        """The index of the choice that `point` in [0, 1) falls to."""
        # Rounding can leave the last upper end a hair below 1, and the points there belong to somebody.
        return min(bisect_right(self._upper_ends, point), self._last)


def sticky_point(model: str, routing_key: bytes) -> float:
    """A point in [0, 1) that is the same for a key whenever, wherever and by whichever process it is computed.

    The model is part of it: a client that meets the challenger of one model need not be one that meets all others.
    """
    point = xxhash.xxh3_64_intdigest(routing_key, seed=xxhash.xxh32_intdigest(model.encode())) / _TWO_TO_64
    return min(point, math.nextafter(1.0, 0.0))
