"""Fewer points that still draw the same line: each bucket keeps its lowest and its highest value, and its gap."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_KEPT_PER_BUCKET = 3  # lowest, highest, one gap
_ENDS = 2


def downsample(values: Floats, limit: int) -> Indices:
    """Which points of a line to draw, at most `limit` of them.

    The first and the last point stay, so a line keeps its length; a spike stays, since a loss that spiked for one
    step of a million is what one looks for; a bucket that holds NaN keeps one, so that the gap stays.

    Args:
        values: The line's values [points]; NaN where it has a gap.
        limit: The most points to keep, at least 5.

    Returns:
        Indices into `values` [kept], ascending.
    """
    if len(values) <= limit:
        return np.arange(len(values), dtype=np.int64)
    buckets = (limit - _ENDS) // _KEPT_PER_BUCKET
    edges = np.linspace(0, len(values), buckets + 1).astype(np.int64)
    kept = {0, len(values) - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        kept |= _extremes(values[begin:end], begin)
    return np.array(sorted(kept), dtype=np.int64)


def thin(items: list[Any], limit: int) -> list[Any]:
    """At most `limit` of `items`, evenly chosen, the first and the last among them."""
    if len(items) <= limit:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, limit).astype(int).tolist()]


def _extremes(bucket: Floats, begin: int) -> set[int]:
    gap = np.isnan(bucket)
    kept = {begin + int(np.argmax(gap))} if gap.any() else set()
    if not gap.all():
        kept |= {begin + int(np.nanargmin(bucket)), begin + int(np.nanargmax(bucket))}
    return kept
