"""A tensor that was read is torch's, in memory of its own."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_box, read_tensor


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_tensor_of_every_type_comes_out_bit_by_bit(cut, dtype):
    tensor = (
        torch.arange(32, dtype=torch.uint8).view(2, 16).view(dtype) if dtype is not torch.bool else torch.eye(2) > 0
    )

    with CheckpointSource(cut({"w": tensor}), 1) as source:
        found = read_tensor(source, "w")

    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_what_was_read_may_be_changed_and_read_again(cut):
    with CheckpointSource(cut({"w": torch.ones(2)}), 1) as source:
        read_tensor(source, "w").zero_()

        assert read_tensor(source, "w").tolist() == [1.0, 1.0]


def test_a_box_without_elements_is_an_empty_tensor(cut):
    with CheckpointSource(cut({"w": torch.ones(2, 3)}), 1) as source:
        found = read_box(source, "w", (2, 0), (0, 3))

    assert (found.shape, found.dtype) == ((0, 3), torch.float32)
