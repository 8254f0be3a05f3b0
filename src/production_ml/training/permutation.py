"""The order of an epoch: a permutation that is computed place by place, so that it takes no memory and no start-up."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

_ROUNDS: Final = 6
_Words = npt.NDArray[np.uint64]


class Permutation:
    """A permutation of `range(length)` that the seed and the epoch alone decide.

    A Feistel network over the next even number of bits (Luby and Rackoff, 1988). A result past the end is put in again
    until it lies inside (cycle walking; Black and Rogaway, 2002), at most four times on average.

    Args:
        length: Number of samples, at least 1.
        seed: Any whole number.
        epoch: Counted from 0.
    """

    def __init__(self, length: int, *, seed: int, epoch: int) -> None:
        self._length = length
        self._half_bits = np.uint64(max(1, -(-(length - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, places: npt.NDArray[np.int64]) -> list[int]:
        """The sample at each of `places`, which lie in `range(length)`."""
        found = self._shuffle(places.astype(np.uint64))
        while (outside := found >= self._length).any():
            found[outside] = self._shuffle(found[outside])
        return [int(sample) for sample in found]

    def _shuffle(self, words: _Words) -> _Words:
        left, right = words >> self._half_bits, words & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mixed(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); arrays wrap around silently."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
