"""Boxes become one durable shard that any safetensors reader opens."""

from __future__ import annotations

import safetensors.torch
import torch

from production_ml.fault_tolerance.interchange.shards import ShardBoxes


def test_each_tensor_and_box_is_in_the_shard_bit_by_bit(directory):
    whole, strided = torch.arange(3, dtype=torch.int64), torch.arange(6.0).reshape(2, 3).t()
    boxes = ShardBoxes()
    boxes.add("whole", whole, offsets=None, shape=(3,))
    boxes.add("cut", strided, offsets=(4, 0), shape=(7, 2))
    boxes.add("empty", torch.empty(0, 2), offsets=None, shape=(0, 2))
    lock = directory.begin(1, "id")
    save = directory.incomplete(1, "id")

    part = boxes.write(save, 3)

    lock.release()
    found = safetensors.torch.load_file(save.path / "rank-00003.safetensors")
    assert torch.equal(found["whole"], whole)
    assert torch.equal(found["cut@4,0"], strided)
    assert found["empty"].shape == (0, 2)
    assert set(part.tensors) == {"whole", "cut", "empty"}
    assert boxes.size_bytes == whole.nbytes + strided.nbytes


def test_a_parameter_is_written_without_its_graph(directory):
    boxes = ShardBoxes()
    boxes.add("w", torch.nn.Parameter(torch.ones(2)), offsets=None, shape=(2,))
    lock = directory.begin(1, "id")

    boxes.write(directory.incomplete(1, "id"), 0)

    lock.release()
    assert not boxes.data["w"].requires_grad
