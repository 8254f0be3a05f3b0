"""Memory for a load is an ordinary tensor, whatever its size."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance.loading.fresh_memory import empty


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (2, 1 << 20), (3 << 20,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex128])
def test_it_is_contiguous_has_the_shape_and_takes_values(shape, dtype):
    tensor = empty(shape, dtype)
    tensor.fill_(1)

    assert (tensor.shape, tensor.dtype) == (torch.Size(shape), dtype)
    assert tensor.is_contiguous()
    assert (tensor == 1).all()
