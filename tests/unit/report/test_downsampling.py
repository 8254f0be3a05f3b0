"""A line with fewer points keeps its ends, its spikes and its gaps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from production_ml.report.downsampling import downsample, thin

LIMIT = 2000


def test_a_short_line_is_drawn_whole():
    assert downsample(np.arange(LIMIT, dtype=float), LIMIT).tolist() == list(range(LIMIT))


@pytest.mark.parametrize("points", [2001, 12_345, 1_000_000])
@pytest.mark.parametrize("limit", [5, 50, 2000])
def test_a_long_line_never_has_more_points_than_allowed_and_keeps_its_ends(points, limit):
    values = np.random.default_rng(7).normal(size=points)
    values[::11] = np.nan

    kept = downsample(values, limit)

    assert len(kept) <= limit
    assert (kept[0], kept[-1]) == (0, points - 1)
    assert np.all(np.diff(kept) > 0)


def test_the_one_spike_and_the_one_dip_of_a_million_points_stay():
    values = np.zeros(1_000_000)
    values[123_457], values[765_431] = 9.0, -9.0

    kept = downsample(values, LIMIT)

    assert {123_457, 765_431} <= set(kept.tolist())


def test_each_bucket_keeps_its_lowest_and_highest():
    values = np.random.default_rng(3).normal(size=10_000)
    buckets = (LIMIT - 2) // 3
    edges = np.linspace(0, len(values), buckets + 1).astype(int)

    kept = set(downsample(values, LIMIT).tolist())

    for begin, end in itertools.pairwise(edges):
        assert begin + int(np.argmin(values[begin:end])) in kept
        assert begin + int(np.argmax(values[begin:end])) in kept


def test_a_gap_stays_a_gap():
    values = np.ones(100_000)
    values[50_000] = np.nan

    kept = downsample(values, LIMIT)

    assert np.isnan(values[kept]).sum() == 1


def test_nothing_but_gaps_is_no_problem():
    assert len(downsample(np.full(10_000, np.nan), LIMIT)) <= LIMIT


def test_thinned_markers_keep_the_first_and_the_last():
    items = list(range(10_001))

    assert thin(items[:400], 400) == items[:400]
    assert len(thin(items, 400)) == 400
    assert (thin(items, 400)[0], thin(items, 400)[-1]) == (0, 10_000)
