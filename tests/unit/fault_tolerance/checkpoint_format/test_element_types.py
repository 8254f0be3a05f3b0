"""Every element type has the size that torch gives it, and a stored form of the same bytes."""

from __future__ import annotations

import pytest
import safetensors
import torch

from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES, size_bytes, stored_form
from production_ml.fault_tolerance.checkpoint_format.shard_layout import lay_out
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES


def test_both_tables_of_types_name_the_same_types_and_sizes():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ELEMENT_BYTES


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_the_stored_form_has_the_same_bytes_and_safetensors_knows_it(dtype, shape):
    stored, stored_shape = stored_form(dtype, shape)
    layout = lay_out([("x", dtype, shape)])

    assert size_bytes(stored, stored_shape) == size_bytes(dtype, shape)
    assert size_bytes(dtype, shape) == torch.Size(shape).numel() * DTYPES[dtype].itemsize
    [(name, described)] = safetensors.deserialize(layout.header + bytes(layout.size_bytes - len(layout.header)))
    assert (name, described["dtype"], tuple(described["shape"])) == ("x", stored, stored_shape)
