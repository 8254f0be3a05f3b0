"""Training ends when a metric no longer improves, also across a restart."""

from __future__ import annotations

import math

import pytest

from production_ml.core.errors import ConfigError
from production_ml.training.early_stopping import EarlyStopping


def evaluations_until_due(stopping, values):
    for count, value in enumerate(values, start=1):
        stopping.update(value)
        if stopping.is_due(stopping.values()):
            return count
    return None


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "expected"),
    [
        ("min", 0.0, [3, 2, 2, 2, 1], 4),
        ("max", 0.5, [1, 1.4, 1.5, 2.1], 3),
        ("min", 0.0, [math.nan, math.nan], 2),
        ("min", 0.0, [3, math.nan, 2, math.nan, 1], None),
    ],
)
def test_it_ends_after_patience_evaluations_without_improvement(mode, min_delta, values, expected):
    stopping = EarlyStopping(2, min_delta=min_delta, mode=mode)

    assert evaluations_until_due(stopping, values) == expected


def test_a_restart_goes_on_counting():
    before = EarlyStopping(2)
    evaluations_until_due(before, [1, 2])
    after = EarlyStopping(2)

    after.load_state_dict(before.state_dict())

    assert evaluations_until_due(after, [2]) == 1


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"patience": 1, "min_delta": math.nan}, {"patience": 1, "mode": "up"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        EarlyStopping(**wrong)
