"""A shard is the image to the byte however it is written, and any tool for safetensors reads it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from production_ml.fault_tolerance.checkpoint_format import shard_writing
from production_ml.fault_tolerance.checkpoint_format.element_types import stored_form
from production_ml.fault_tolerance.checkpoint_format.shard_writing import write_shard_file
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES, DTYPES, as_bytes
from production_ml.fault_tolerance.saving.image import ShardImage


@pytest.fixture
def image() -> Iterator[ShardImage]:
    image = ShardImage()
    yield image
    image.close()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a file system that is no disk, and may have no direct I/O."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (32 << 20) + 4099])
def test_the_file_is_the_image_to_the_byte_with_direct_io_and_without(tmp_path, in_memory, image, size, monkeypatch):
    expected = torch.arange(size).to(torch.uint8).numpy().tobytes()
    image.resize(max(size, 1))
    image.data[:size] = expected
    image.data[size:] = b"!" * (len(image.data) - size)  # what an earlier shard left there

    write_shard_file(tmp_path / "s", image.data, size)
    write_shard_file(in_memory / "s", image.data, size)
    monkeypatch.setattr(os, "O_DIRECT", 0)
    write_shard_file(tmp_path / "buffered", image.data, size)

    for path in (tmp_path / "s", in_memory / "s", tmp_path / "buffered"):
        assert path.read_bytes() == expected


@pytest.mark.parametrize("number", shard_writing._NO_DIRECT)
def test_a_file_system_that_refuses_direct_io_at_the_first_write_is_written_without(
    tmp_path, image, number, monkeypatch
):
    image.resize(5000)
    image.data[:5000] = bytes(range(250)) * 20
    direct: list[int] = []
    pwrite = os.pwrite

    def refuse_once(descriptor: int, data: memoryview, position: int) -> int:
        if not direct:
            direct.append(descriptor)
            raise OSError(number, os.strerror(number))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", refuse_once)
    write_shard_file(tmp_path / "s", image.data, 5000)

    assert len(direct) == 1
    assert (tmp_path / "s").read_bytes() == bytes(range(250)) * 20


def test_the_safetensors_library_reads_every_type(tmp_path, write_tensors):
    tensors = {str(dtype): torch.arange(6 * dtype.itemsize, dtype=torch.uint8) for dtype in DTYPE_NAMES}
    tensors = {str(dtype): (tensors[str(dtype)] % 2).view(dtype).reshape(2, 3) for dtype in DTYPE_NAMES}
    write_tensors(tmp_path / "s", tensors)

    found = safetensors.torch.load_file(tmp_path / "s")
    with safetensors.safe_open(tmp_path / "s", "pt") as opened:
        assert set(opened.keys()) == set(found) == set(tensors)
        for name, tensor in tensors.items():
            stored, shape = stored_form(DTYPE_NAMES[tensor.dtype], (2, 3))
            assert (found[name].dtype, tuple(found[name].shape)) == (DTYPES[stored], shape)
            assert bytes(as_bytes(found[name])) == bytes(as_bytes(tensor))
            assert bytes(as_bytes(opened.get_tensor(name))) == bytes(as_bytes(tensor))


def test_a_shard_without_tensors_can_be_opened(tmp_path, write_tensors):
    write_tensors(tmp_path / "s", {})

    assert safetensors.torch.load_file(tmp_path / "s") == {}


def test_what_is_in_the_place_of_a_new_shard_is_not_overwritten(tmp_path, write_tensors):
    (tmp_path / "s").write_text("mine")

    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "s", {"x": torch.ones(1)})

    assert (tmp_path / "s").read_text() == "mine"
