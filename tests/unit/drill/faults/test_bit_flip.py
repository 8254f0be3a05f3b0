"""A flipped bit is one bit."""

from __future__ import annotations

import random

import pytest

from production_ml.drill.faults.bit_flip import flip_bit


@pytest.mark.parametrize("seed", range(5))
def test_one_bit_differs_and_the_size_stays(tmp_path, seed):
    path = tmp_path / "file"
    before = bytes(range(256))
    path.write_bytes(before)

    flip_bit(path, random.Random(seed))
    after = path.read_bytes()

    assert len(after) == len(before)
    assert sum((one ^ two).bit_count() for one, two in zip(before, after, strict=True)) == 1
