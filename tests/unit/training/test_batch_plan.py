"""A global batch is spread without loss, evenly, and with weights that keep its mean."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.training.batch_plan import plan_batch


@given(size=st.integers(1, 300), world_size=st.integers(1, 20), micro=st.integers(1, 50))
def test_every_sample_is_in_one_piece_and_the_mean_is_kept(size, world_size, micro):
    plans = [plan_batch(size, rank=r, world_size=world_size, micro_batch_size=micro) for r in range(world_size)]

    pieces = [(piece, weight) for plan in plans for piece, weight in zip(plan.micro_batches, plan.weights, strict=True)]
    shares = [len(plan.share) for plan in plans]
    means = sum(weight * sum(place**2 for place in piece) / len(piece) for piece, weight in pieces) / world_size
    assert [place for piece, _ in pieces for place in piece] == list(range(size))
    assert max(shares) - min(shares) <= 1
    assert max(len(piece) for piece, _ in pieces) <= micro
    assert math.isclose(means, sum(place**2 for place in range(size)) / size, rel_tol=1e-12)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"rank": 2}, {"world_size": 0}, {"micro_batch_size": -1}])
def test_wrong_sizes_are_refused(wrong):
    sizes = {"size": 4, "rank": 0, "world_size": 2, "micro_batch_size": 1, **wrong}

    with pytest.raises(ConfigError):
        plan_batch(**sizes)
