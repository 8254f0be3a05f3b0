"""A shard holds every bit that was put into it, and says so when it does not."""

from __future__ import annotations

import random

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.errors import CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry
from production_ml.fault_tolerance.checkpoint_format.shard_file import (
    DTYPE_NAMES,
    ShardReader,
    as_bytes,
    dtype_name,
    write_shard,
)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, so NaNs with payloads and denormals too."""
    if dtype is torch.bool:
        values = random.Random(seed).choices([True, False], k=torch.Size(shape).numel())
        return torch.tensor(values, dtype=torch.bool).reshape(shape)
    data = bytearray(random.Random(seed).randbytes(torch.Size(shape).numel() * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def chunk_of(tensor: torch.Tensor, digest: str) -> ChunkEntry:
    return ChunkEntry(file="s", key="x", offsets=(0,) * tensor.ndim, shape=tuple(tensor.shape), hash=digest)


@pytest.fixture
def written(tmp_path):
    tensor = torch.arange(300.0)
    entry, hashes = write_shard(tmp_path / "s", {"x": tensor, "y": torch.zeros(5, dtype=torch.int8)})
    return tmp_path / "s", entry, chunk_of(tensor, hashes["x"])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(DTYPE_NAMES)),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.integers(0, 2**32),
)
def test_any_bits_of_any_type_and_shape_come_back(tmp_path_factory, dtype, shape, seed):
    path = tmp_path_factory.mktemp("shard") / "s"
    tensor = random_tensor(dtype, shape, seed)
    entry, hashes = write_shard(path, {"x": tensor})

    with ShardReader(path, entry, step=1) as reader:
        found = reader.read("x", DTYPE_NAMES[dtype], chunk_of(tensor, hashes["x"]))
        reader.verify("x", DTYPE_NAMES[dtype], chunk_of(tensor, hashes["x"]))

    assert (found.dtype, found.shape) == (dtype, torch.Size(shape))
    assert bytes(as_bytes(found)) == bytes(as_bytes(tensor))


def test_the_safetensors_library_reads_our_shards(tmp_path):
    tensors = {str(dtype): random_tensor(dtype, (2, 3), 0) for dtype in sorted(DTYPE_NAMES, key=lambda d: -d.itemsize)}
    write_shard(tmp_path / "s", tensors)

    found = safetensors.torch.load_file(tmp_path / "s")

    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert bytes(as_bytes(found[name])) == bytes(as_bytes(tensor))


def test_a_tensor_larger_than_a_piece_is_hashed_whole(tmp_path):
    tensor = torch.arange(1_000_003, dtype=torch.float32)
    entry, hashes = write_shard(tmp_path / "s", {"x": tensor})

    with ShardReader(tmp_path / "s", entry, step=1) as reader:
        assert torch.equal(reader.read("x", "F32", chunk_of(tensor, hashes["x"])), tensor)


def read_all(path, entry: FileEntry, chunk: ChunkEntry) -> None:
    with ShardReader(path, entry, step=5) as reader:
        reader.read("model.x", "F32", chunk)


def test_a_flipped_bit_in_the_data_names_file_tensor_and_hashes(written):
    path, entry, chunk = written
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)

    with pytest.raises(
        DamagedCheckpointError, match=r"does not match its hash \(expected \w{8}, found \w{8}\)"
    ) as found:
        read_all(path, entry, chunk)

    assert (found.value.path, found.value.tensor, found.value.step) == (path, "model.x", 5)


def test_a_flipped_bit_anywhere_in_the_header_is_noticed(written, rng):
    path, entry, chunk = written
    good = path.read_bytes()
    for position in range(len(good) - 1205):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)

        with pytest.raises(DamagedCheckpointError):
            read_all(path, entry, chunk)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0"])
def test_another_length_is_noticed_before_anything_is_read(written, change):
    path, entry, chunk = written
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(DamagedCheckpointError, match=r"truncated|too long"):
        read_all(path, entry, chunk)


def test_a_missing_shard_is_damage(written):
    path, entry, chunk = written
    path.unlink()

    with pytest.raises(DamagedCheckpointError, match="missing"):
        read_all(path, entry, chunk)


def test_a_chunk_that_is_not_in_the_shard_is_damage(written):
    path, entry, _ = written
    absent = ChunkEntry(file="s", key="z", offsets=(0,), shape=(1,), hash="")

    with pytest.raises(DamagedCheckpointError, match="not described"):
        read_all(path, entry, absent)


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)], ids=["sparse", "complex128"]
)
def test_what_safetensors_cannot_hold_is_refused_by_name(tensor):
    with pytest.raises(CheckpointWriteError, match=r"'model\.odd'"):
        dtype_name("model.odd", tensor)
