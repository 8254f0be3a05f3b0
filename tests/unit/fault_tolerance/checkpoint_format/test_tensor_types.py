"""A tensor that a checkpoint cannot hold is refused by name, and the bytes of one that it can are not copied."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.tensor_types import as_bytes, dtype_name


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.empty(2, dtype=torch.float4_e2m1fn_x2)],
    ids=["sparse", "packed"],
)
def test_what_a_checkpoint_cannot_hold_is_refused_by_name_with_a_cure(tensor):
    with pytest.raises(CheckpointWriteError, match=r"'model\.odd'.*float8_e4m3fn.*") as raised:
        dtype_name("model.odd", tensor)

    assert "Convert it first" in raised.value.cure


def test_bytes_are_a_view_of_the_tensor():
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    data = as_bytes(tensor)
    data[0:2] = b"\x80\x3f"

    assert len(data) == 12
    assert tensor[0, 0] == 1


def test_scalars_and_empty_tensors_have_bytes_too():
    assert bytes(as_bytes(torch.tensor(1, dtype=torch.int16))) == b"\1\0"
    assert bytes(as_bytes(torch.empty(0, 4))) == b""
