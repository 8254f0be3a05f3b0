"""Numbers read as a person would write them."""

from __future__ import annotations

import math

import pytest

from production_ml.report import numbers


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0, "0 s"),
        (0.0000021, "0.00 ms"),
        (0.031, "31.0 ms"),
        (0.9996, "1.00 s"),
        (1.234, "1.23 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (100_000, "1 d 03 h"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_durations(duration, text):
    assert numbers.seconds(duration) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (812, "812 B"), (1023.9, "1.00 KiB"), (44_145_000, "42.1 MiB"), (2**60, "1048576 TiB"), (None, "—")],
)
def test_sizes(size, text):
    assert numbers.size(size) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.1235"),
        (1184.49, "1,184"),
        (12_345.6, "12,346"),
        (0.000012, "1.2e-05"),
        (-3e12, "-3e+12"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (None, "—"),
    ],
)
def test_values(number, text):
    assert numbers.value(number) == text


def test_counts_moments_and_plurals():
    assert numbers.count(1_234_567) == "1,234,567"
    assert numbers.moment(1_767_268_800.9) == "2026-01-01 12:00:00 UTC"
    assert [numbers.plural(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
