"""A shard holds every bit that was put into it, and says so when it does not."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.blocks import BLOCK_BYTES
from production_ml.fault_tolerance.checkpoint_format.byte_source import FileSource
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES, as_bytes
from production_ml.storage.hashing import hash_bytes


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, so NaNs with payloads and denormals too."""
    if dtype is torch.bool:
        values = random.Random(seed).choices([True, False], k=torch.Size(shape).numel())
        return torch.tensor(values, dtype=torch.bool).reshape(shape)
    data = bytearray(random.Random(seed).randbytes(torch.Size(shape).numel() * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def chunk_of(tensor: torch.Tensor, hashes: tuple[str, ...]) -> ChunkEntry:
    return ChunkEntry(file="s", key="x", offsets=(0,) * tensor.ndim, shape=tuple(tensor.shape), hashes=hashes)


def read(path: Path, entry: FileEntry, chunk: ChunkEntry, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    found = torch.empty(chunk.shape, dtype=dtype)
    with ShardReader(FileSource(path, step=5), entry, step=5) as reader:
        reader.read_into("model.x", DTYPE_NAMES[dtype], chunk, as_bytes(found))
    return found


def verify(path: Path, entry: FileEntry, chunk: ChunkEntry, dtype: torch.dtype = torch.float32) -> None:
    with ShardReader(FileSource(path, step=5), entry, step=5) as reader:
        reader.verify("model.x", DTYPE_NAMES[dtype], chunk)


@pytest.fixture
def written(tmp_path, write_tensors):
    tensor = torch.arange(300.0)
    entry, hashes = write_tensors(tmp_path / "s", {"x": tensor, "y": torch.zeros(5, dtype=torch.int8)})
    return tmp_path / "s", entry, chunk_of(tensor, hashes["x"])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(DTYPE_NAMES)),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.integers(0, 2**32),
)
def test_any_bits_of_any_type_and_shape_come_back(tmp_path_factory, write_tensors, dtype, shape, seed):
    path = tmp_path_factory.mktemp("shard") / "s"
    tensor = random_tensor(dtype, shape, seed)
    entry, hashes = write_tensors(path, {"x": tensor})

    found = read(path, entry, chunk_of(tensor, hashes["x"]), dtype)
    verify(path, entry, chunk_of(tensor, hashes["x"]), dtype)

    assert bytes(as_bytes(found)) == bytes(as_bytes(tensor))


def test_blocks_of_a_large_tensor_are_verified_one_by_one(tmp_path, write_tensors):
    tensor = torch.arange(2 * BLOCK_BYTES // 4 + 1, dtype=torch.int32)
    entry, hashes = write_tensors(tmp_path / "s", {"x": tensor})
    chunk = chunk_of(tensor, hashes["x"])
    assert len(chunk.hashes) == 3
    assert torch.equal(read(tmp_path / "s", entry, chunk, torch.int32), tensor)

    with (tmp_path / "s").open("r+b") as file:
        file.seek(-BLOCK_BYTES, 2)  # in the middle of the three
        file.write(b"\xff")

    with ShardReader(FileSource(tmp_path / "s", step=5), entry, step=5) as reader:
        located = reader.locate("x", "I32", chunk)
        for index in (0, 2):
            reader.verify_block(located, index)
        with pytest.raises(DamagedCheckpointError, match="in bytes 16,777,216 to 33,554,432 of its chunk"):
            reader.verify_block(located, 1)
        block = memoryview(bytearray(BLOCK_BYTES))
        with pytest.raises(DamagedCheckpointError, match="does not match its hash"):
            reader.read_block(located, 1, block)
        reader.read_block(located, 1, block, is_checked=False)
    assert block[4] == 0xFF


def test_a_flipped_bit_in_the_data_names_file_tensor_and_hashes(written):
    path, entry, chunk = written
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)

    for look in (read, verify):
        with pytest.raises(
            DamagedCheckpointError, match=r"does not match its hash \(expected \w{8}, found \w{8}\)$"
        ) as found:
            look(path, entry, chunk)

        assert (found.value.path, found.value.tensor, found.value.step) == (path, "model.x", 5)


def test_a_flipped_bit_anywhere_in_the_header_is_noticed(written, rng):
    path, entry, chunk = written
    good = path.read_bytes()
    header_bytes = len(good) - 1205
    # Every byte that says something, and some of the spaces that fill the page.
    for position in (*range(256), *rng.sample(range(256, header_bytes), 50), header_bytes - 1):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)

        with pytest.raises(DamagedCheckpointError):
            read(path, entry, chunk)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0"])
def test_another_length_is_noticed_before_anything_is_read(written, change):
    path, entry, chunk = written
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(DamagedCheckpointError, match=r"truncated|too long"):
        read(path, entry, chunk)


def test_a_missing_shard_is_damage(written):
    path, entry, chunk = written
    path.unlink()

    with pytest.raises(DamagedCheckpointError, match="missing"):
        read(path, entry, chunk)


@pytest.mark.parametrize(
    ("key", "shape", "hashes", "dtype"),
    [
        ("z", (300,), ("",), torch.float32),
        ("x", (150, 2), ("",), torch.float32),
        ("x", (300,), ("",), torch.int32),
        ("x", (300,), ("", ""), torch.float32),
        ("x", (300,), (), torch.float32),
    ],
    ids=["key", "shape", "type", "a hash too many", "no hash"],
)
def test_a_manifest_that_describes_another_shard_is_noticed(written, key, shape, hashes, dtype):
    path, entry, _ = written
    other = ChunkEntry(file="s", key=key, offsets=(0,) * len(shape), shape=shape, hashes=hashes)

    with pytest.raises(DamagedCheckpointError, match="not described"):
        read(path, entry, other, dtype)


def test_the_source_is_closed_with_the_reader_and_where_there_is_none(written):
    path, entry, _ = written

    class Watched(FileSource):
        is_closed = False

        def close(self) -> None:
            super().close()
            self.is_closed = True

    source, other = Watched(path, step=5), Watched(path, step=5)
    ShardReader(source, entry, step=5).close()
    with pytest.raises(DamagedCheckpointError):
        ShardReader(other, FileEntry(size_bytes=1, header_hash=""), step=5)

    assert source.is_closed
    assert other.is_closed


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"[]", "not a safetensors header"),
        (b"{" * 100_000, "not a safetensors header"),
        (b'{"x": []}', "not described"),
        (b'{"x": {"dtype": "F32", "shape": [1]}}', "not described"),
        (b'{"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}', "not described"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-9, -5]}}', "not described"),
    ],
)
def test_a_header_that_matches_its_hash_and_makes_no_sense_is_damage(tmp_path, header, problem):
    data = struct.pack("<Q", len(header)) + header
    (tmp_path / "s").write_bytes(data + bytes(4))
    entry = FileEntry(size_bytes=len(data) + 4, header_hash=hash_bytes(data))

    with pytest.raises(DamagedCheckpointError, match=problem):
        read(tmp_path / "s", entry, ChunkEntry(file="s", key="x", offsets=(0,), shape=(1,), hashes=("",)))
