"""Staged copies have every bit of the original, do not change with it, and reuse their memory."""

from __future__ import annotations

import torch

from production_ml.fault_tolerance.checkpoint_format.shard_file import DTYPE_NAMES, as_bytes
from production_ml.fault_tolerance.saving.staging import StagingMemory


def test_a_staged_copy_does_not_change_with_the_original():
    original = torch.ones(3)
    staged = StagingMemory().stage({"x": original})
    original.zero_()

    assert staged["x"].tolist() == [1, 1, 1]


def test_every_type_shape_and_stride_is_copied_bit_for_bit():
    tensors = {}
    for number, dtype in enumerate(DTYPE_NAMES):
        data = torch.arange(number, number + 24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(4, 6)
        if dtype is torch.bool:
            data = torch.arange(24).reshape(4, 6) % 3 == 0
        tensors |= {f"{dtype} {name}": view for name, view in {"t": data.t(), "0": data[1, 1], "e": data[:0]}.items()}
    tensors["expanded"] = torch.tensor(3.0).expand(2, 2)
    tensors["conjugated"] = torch.tensor([1 + 2j]).conj()

    staged = StagingMemory().stage(tensors)

    assert set(staged) == set(tensors)
    for name, tensor in tensors.items():
        assert staged[name].is_contiguous()
        assert bytes(as_bytes(staged[name])) == bytes(as_bytes(tensor.resolve_conj().contiguous())), name


def test_memory_is_reused_for_the_same_layout():
    memory = StagingMemory()
    first = memory.stage({"x": torch.ones(100), "flag": torch.ones(3, dtype=torch.bool)})
    place = first["x"].data_ptr()

    second = memory.stage({"x": torch.zeros(100), "flag": torch.zeros(3, dtype=torch.bool)})

    assert second["x"].data_ptr() == place
    assert not second["x"].any()


def test_a_model_that_grows_and_shrinks_is_laid_out_anew():
    memory = StagingMemory()
    for size in (2, 300, 5):
        staged = memory.stage({"x": torch.full((size,), float(size)), "y": torch.tensor(size)})

        assert staged["x"].tolist() == [float(size)] * size
        assert int(staged["y"]) == size
