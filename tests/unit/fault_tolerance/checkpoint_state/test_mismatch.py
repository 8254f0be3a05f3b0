"""A refusal names what differs, and says that nothing was touched."""

from __future__ import annotations

import pytest

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_state.mismatch import compare_names, mismatch


def test_names_that_differ_on_either_side_are_told():
    with pytest.raises(
        CheckpointMismatchError, match=r"no 'head\.bias'; the checkpoint has 'old', which the model"
    ) as e:
        compare_names("the model", ["old", "w"], ["w", "head.bias"])

    assert "as they were" in str(e.value)


def test_a_long_list_is_cut():
    with pytest.raises(CheckpointMismatchError, match="and 95 more"):
        compare_names("the model", [], [f"layer{number}" for number in range(100)])


def test_the_same_names_in_another_order_fit():
    compare_names("the model", ["a", "b"], ["b", "a"])


def test_a_refusal_says_what_to_do():
    assert "another checkpoint directory" in str(mismatch("It does not fit."))
