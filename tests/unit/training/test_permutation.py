"""An epoch's order holds every sample once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from production_ml.training.permutation import Permutation


@given(length=st.integers(1, 3000), seed=st.integers(), epoch=st.integers(0, 50))
def test_every_sample_has_one_place(length, seed, epoch):
    order = Permutation(length, seed=seed, epoch=epoch)(np.arange(length))

    assert sorted(order) == list(range(length))


def test_another_epoch_or_seed_has_another_order():
    orders = {tuple(Permutation(50, seed=s, epoch=e)(np.arange(50))) for s in range(3) for e in range(3)}

    assert len(orders) == 9
