"""What differs between two checkpoints is found by hashes where these tell, and by numbers where not."""

from __future__ import annotations

import math

import pytest
import torch

from production_ml.fault_tolerance.interchange.difference import compare
from production_ml.fault_tolerance.interchange.source import CheckpointSource


@pytest.fixture
def difference(cut):
    def find(a, b, **shapes):
        one, other = cut(a, name="a", **shapes), cut(b, name="b", **shapes)
        read = []
        with CheckpointSource(one, 1, on_bytes=read.append) as first, CheckpointSource(other, 1) as second:
            return compare(first, second), sum(read)

    return find


def test_equal_hashes_are_not_read(difference):
    found, read_bytes = difference({"w": torch.ones(5)}, {"w": torch.ones(5)})

    assert found.is_empty
    assert found.same_tensors == 1
    assert read_bytes == 0


def test_the_same_tensor_in_other_boxes_is_the_same(difference):
    whole = torch.arange(6.0).reshape(3, 2)

    found, read_bytes = difference({"w": whole}, {"w": {(0, 0): whole[:2], (2, 0): whole[2:]}}, w=(3, 2))

    assert found.is_empty
    assert read_bytes == whole.nbytes


def test_values_are_counted_and_the_greatest_gap_is_given(difference):
    found, _ = difference({"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([1.0, 2.5, 1.0])})

    [one] = found.tensors
    assert (one.name, one.kind, one.elements, one.of, one.greatest) == ("w", "values", 2, 3, 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_every_type_can_be_compared(difference, dtype):
    found, _ = difference({"w": torch.tensor([1, 0]).to(dtype)}, {"w": torch.tensor([0, 0]).to(dtype)})

    assert [(one.elements, one.greatest) for one in found.tensors] == [(1, 1.0)]


def test_bits_count_where_numbers_do_not_tell(difference):
    found, _ = difference({"w": torch.tensor([0.0, math.nan, 1.0])}, {"w": torch.tensor([-0.0, math.nan, math.nan])})

    [one] = found.tensors
    assert (one.elements, one.greatest) == (2, None)


def test_names_shapes_types_and_values_are_told_apart(difference):
    a = {"gone": torch.ones(1), "wide": torch.ones(2), "typed": torch.ones(1)}
    b = {"come": torch.ones(1), "wide": torch.ones(3), "typed": torch.ones(1).half()}

    found, _ = difference(a, b)

    kinds = {one.name: one.kind for one in found.tensors}
    assert kinds == {"gone": "only in A", "wide": "shape", "typed": "dtype", "come": "only in B"}
    assert found.values == ("model.gone (only in A)", "model.come (only in B)")
