"""The split gives each version its share, and a client its version."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.serving.traffic import TrafficSplit, sticky_point

KEYS = [f"client-{number}".encode() for number in range(20_000)]


def test_the_shares_of_the_traffic_are_the_weights():
    split = TrafficSplit([80, 20])
    chance = random.Random(5)

    chosen = [split.choose(chance.random()) for _ in range(20_000)]

    assert split.shares == (0.8, 0.2)
    assert chosen.count(1) / len(chosen) == pytest.approx(0.2, abs=0.01)


def test_sticky_clients_are_shared_by_weight_too():
    split = TrafficSplit([1, 2, 1])

    chosen = [split.choose(sticky_point("digits", key)) for key in KEYS]

    assert [chosen.count(index) / len(KEYS) for index in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_a_key_meets_the_same_version_in_every_process():
    assert sticky_point("digits", b"client-1") == 0.9506073519818115
    assert sticky_point("digits", b"") == sticky_point("digits", b"")


def test_a_changed_weight_moves_only_the_clients_it_must():
    before, after = TrafficSplit([80, 20]), TrafficSplit([90, 10])
    points = [sticky_point("digits", key) for key in KEYS]

    moved = [(before.choose(point), after.choose(point)) for point in points]

    assert (0, 1) not in moved
    assert moved.count((1, 0)) / len(KEYS) == pytest.approx(0.1, abs=0.01)


def test_the_split_of_one_model_says_nothing_about_another():
    split = TrafficSplit([1, 1])

    same = sum(split.choose(sticky_point("a", key)) == split.choose(sticky_point("b", key)) for key in KEYS)

    assert same / len(KEYS) == pytest.approx(0.5, abs=0.02)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_no_point_falls_to_nobody_or_to_a_weight_of_0(weights, point):
    assert weights[TrafficSplit(weights).choose(point)] > 0


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [math.nan], [math.inf], [1e308, 1e308]])
def test_weights_that_leave_nobody_to_answer_are_refused(weights):
    with pytest.raises(ConfigError, match="weight"):
        TrafficSplit(weights)
