"""A tensor comes out whole, whatever boxes it was cut into, and verified."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.read_lease import is_being_read
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_box, read_tensor

WHOLE = torch.arange(24.0).reshape(4, 6)
CUTS = {
    "in one": {(0, 0): WHOLE},
    "by rows": {(0, 0): WHOLE[:3], (3, 0): WHOLE[3:]},
    "by columns": {(0, 0): WHOLE[:, :2], (0, 2): WHOLE[:, 2:]},
    "in four": {(0, 0): WHOLE[:1, :4], (0, 4): WHOLE[:1, 4:], (1, 0): WHOLE[1:, :4], (1, 4): WHOLE[1:, 4:]},
}


@pytest.mark.parametrize("boxes", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.bool])
def test_boxes_make_up_their_tensor_bit_by_bit(cut, boxes, dtype):
    directory = cut({"w": {offsets: box.to(dtype) for offsets, box in boxes.items()}}, w=(4, 6))

    with CheckpointSource(directory, 1) as source:
        found, part = read_tensor(source, "w"), read_box(source, "w", (1, 1), (2, 4))

    assert torch.equal(found, WHOLE.to(dtype))
    assert torch.equal(part, WHOLE.to(dtype)[1:3, 1:5])


@pytest.mark.parametrize("tensor", [torch.tensor(3.5), torch.empty(0, 4), torch.arange(3)], ids=["0-dim", "empty", "1"])
def test_odd_shapes_come_out_as_they_went_in(cut, tensor):
    with CheckpointSource(cut({"w": tensor}), 1) as source:
        found = read_tensor(source, "w")

    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(found, tensor)


def test_a_flipped_bit_is_never_given_out(cut, flip):
    directory = cut({"w": CUTS["by rows"]}, w=(4, 6))
    path = flip(directory)

    with CheckpointSource(directory, 1) as source, pytest.raises(DamagedCheckpointError, match="'w'") as raised:
        read_tensor(source, "w")

    assert raised.value.path == path


def test_a_checkpoint_is_on_lease_while_it_is_read(saved):
    with CheckpointSource(saved, 300):
        assert is_being_read(saved.committed(300))
    assert not is_being_read(saved.committed(300))
