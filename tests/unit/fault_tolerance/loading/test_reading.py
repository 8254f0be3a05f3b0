"""Any box comes out of any chunks, and what one rank does not read another verifies."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.blocks import BLOCK_BYTES
from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole
from production_ml.fault_tolerance.checkpoint_format.byte_source import FileSource
from production_ml.fault_tolerance.checkpoint_format.directory_save import shard_name
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.loading.reading import _copies, read_boxes
from production_ml.fault_tolerance.saving.order import Holding
from production_ml.fault_tolerance.saving.parts import describe_part, merge_parts


@pytest.fixture(scope="session")
def write_rows(write_tensors) -> Callable[[Path, torch.Tensor, list[int]], Manifest]:
    """Make a checkpoint in which each rank wrote the rows between two cuts, and a value of its own."""

    def write(path: Path, tensor: torch.Tensor, cuts: list[int]) -> Manifest:
        parts = []
        for rank, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(tensor)], strict=True)):
            rows = tensor[begin:end].contiguous()
            own = Holding(f"own{rank}", f"own{rank}", "F32", (1,), (0,), (1,))
            held = Holding("x", "x", "F32", tuple(tensor.shape), (begin, 0), tuple(rows.shape))
            file, hashes = write_tensors(path / shard_name(rank), {"x": rows, own.name: torch.ones(1)})
            parts.append(describe_part(shard_name(rank), [held, own], file, hashes))
        merged = merge_parts(parts)
        return Manifest(
            step=1,
            save_id="a",
            created_at=0.0,
            world_size=len(parts),
            metrics={},
            values={"model": {}, "optimizer": None, "extra": {}},
            files=merged.files,
            tensors=merged.tensors,
        )

    return write


def from_files(path: Path) -> Callable[[str], FileSource]:
    return lambda file: FileSource(path / file, step=1)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position, 0 if position >= 0 else 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3).map(sorted), st.integers(0, 7), st.integers(0, 7), st.integers(0, 3))
def test_rows_that_were_cut_one_way_are_read_another_way(tmp_path_factory, write_rows, cuts, one, other, column):
    path = tmp_path_factory.mktemp("checkpoint")
    tensor = torch.arange(21.0).reshape(7, 3)
    manifest = write_rows(path, tensor, cuts)
    begin, end = min(one, other), max(one, other)

    box = Box((begin, column), (end - begin, 3 - column))
    found = read_boxes(from_files(path), manifest, {"x": box}, rank=0, world_size=1)

    assert torch.equal(found["x"], tensor[begin:end, column:])
    assert found["x"].is_contiguous()


@pytest.fixture(scope="module")
def large(tmp_path_factory, write_rows):
    """A tensor of two and a half blocks, whose rows cross their borders, in one chunk."""
    path = tmp_path_factory.mktemp("large")
    rows, columns = 5 * BLOCK_BYTES // 8 // 3001, 3001
    tensor = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
    return path, tensor, write_rows(path, tensor, [])


BLOCK_ROWS = BLOCK_BYTES // 4 // 3001
"""The row in which the first block ends."""


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(None)),
        (slice(BLOCK_ROWS - 1, BLOCK_ROWS + 2), slice(None)),
        (slice(BLOCK_ROWS, BLOCK_ROWS + 1), slice(None)),
        (slice(10, 2 * BLOCK_ROWS + 7), slice(1500, 1502)),
        (slice(-1, None), slice(-1, None)),
        (slice(1), slice(1)),
    ],
    ids=["all", "over a border", "the row of a border", "columns", "the last", "the first"],
)
def test_boxes_that_cross_the_borders_of_blocks_are_read_whole(large, rows, columns):
    path, tensor, manifest = large
    expected = tensor[rows, columns]
    row, column = rows.indices(len(tensor))[0], columns.indices(3001)[0]

    found = read_boxes(
        from_files(path), manifest, {"x": Box((row, column), tuple(expected.shape))}, rank=0, world_size=1
    )

    assert torch.equal(found["x"], expected)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(1, 5), max_size=4).map(tuple), st.integers(1, 40))
def test_any_box_is_put_together_from_the_pieces_of_any_cut(data, shape, block):
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    begins = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.integers(1, size - begin)) for size, begin in zip(shape, begins, strict=True))
    found = torch.full(sizes, -1)

    for begin in range(0, tensor.numel(), block):
        elements = tensor.flatten()[begin : begin + block]
        for copy in _copies(shape, Box(begins, sizes), begin, begin + len(elements)):
            piece = elements[copy.begin : copy.begin + math.prod(copy.shape)].view(copy.shape)
            found[copy.target].copy_(piece[copy.source])

    assert torch.equal(found, tensor[Box(begins, sizes).slices_within(whole(shape))])


def test_a_column_takes_memory_for_one_block_at_a_time_and_not_for_its_whole_chunk(large):
    path, tensor, manifest = large
    taken: list[int] = []

    class Watched(FileSource):
        """Notes how large the memory is, as a whole, that each piece is read into."""

        def readinto(self, position: int, buffer: memoryview) -> int:
            taken.append(memoryview(buffer.obj).nbytes)
            return super().readinto(position, buffer)

    column = {"x": Box((0, 7), (len(tensor), 1))}
    found = read_boxes(lambda file: Watched(path / file, step=1), manifest, column, rank=0, world_size=1)

    assert torch.equal(found["x"], tensor[:, 7:8])
    assert max(taken) == BLOCK_BYTES


def test_damage_in_a_block_that_no_rank_wants_is_found_all_the_same(large, tmp_path):
    path, _, manifest = large
    shard = tmp_path / shard_name(0)
    shard.write_bytes((path / shard.name).read_bytes())
    flip(shard, -100)  # in the last block
    first_row = {"x": Box((0, 0), (1, 3001))}

    for verify, world_size, rank in [("full", 2, 1), ("sampled", 1, 0), ("off", 1, 0)]:
        read_boxes(from_files(tmp_path), manifest, first_row, rank=rank, world_size=world_size, verify=verify)
    with pytest.raises(DamagedCheckpointError, match="'x' does not match its hash"):
        read_boxes(from_files(tmp_path), manifest, first_row, rank=0, world_size=2)


def test_damage_in_a_block_of_which_only_a_part_is_wanted_is_found_by_the_rank_that_wants_it(large, tmp_path):
    path, _, manifest = large
    shard = tmp_path / shard_name(0)
    shard.write_bytes((path / shard.name).read_bytes())
    flip(shard, -100)

    with pytest.raises(DamagedCheckpointError, match="'x' does not match its hash"):
        read_boxes(from_files(tmp_path), manifest, {"x": Box((len(large[1]) - 2, 0), (1, 1))}, rank=1, world_size=2)


def test_a_sample_is_compared_and_off_compares_nothing_but_sizes_and_headers(tmp_path, write_tensors):
    tensors = {f"t{number}": torch.ones(1) for number in range(1000)}
    file, hashes = write_tensors(tmp_path / shard_name(0), tensors)
    held = [Holding(name, name, "F32", (1,), (0,), (1,)) for name in tensors]
    part = describe_part(shard_name(0), held, file, hashes)
    manifest = Manifest(
        step=1, save_id="a", created_at=0.0, world_size=1, metrics={}, values={}, files=part.files, tensors=part.tensors
    )
    boxes = {name: whole((1,)) for name in tensors}
    data = bytearray((tmp_path / shard_name(0)).read_bytes())
    data[-4000:] = bytes(4000)
    (tmp_path / shard_name(0)).write_bytes(data)

    found = read_boxes(from_files(tmp_path), manifest, boxes, rank=0, world_size=1, verify="off")
    assert all(float(tensor) == 0 for tensor in found.values())
    # That none of a thousand damaged tensors is in a sample of a sixteenth happens once in 10^28 times.
    with pytest.raises(DamagedCheckpointError, match="does not match its hash"):
        read_boxes(from_files(tmp_path), manifest, boxes, rank=0, world_size=1, verify="sampled")
    (tmp_path / shard_name(0)).write_bytes(data[:-1])
    with pytest.raises(DamagedCheckpointError, match="truncated"):
        read_boxes(from_files(tmp_path), manifest, boxes, rank=0, world_size=1, verify="off")


def test_a_tensor_without_elements_needs_no_file(tmp_path, write_rows):
    manifest = write_rows(tmp_path, torch.empty(0, 3), [0])

    assert read_boxes(from_files(tmp_path), manifest, {"x": whole((0, 3))}, rank=0, world_size=1)["x"].shape == (0, 3)


def test_damage_in_what_no_rank_loads_is_found_by_exactly_one_rank(tmp_path, write_rows):
    manifest = write_rows(tmp_path, torch.ones(4, 2), [2])
    flip(tmp_path / shard_name(1), -1)

    assert read_boxes(from_files(tmp_path), manifest, {}, rank=0, world_size=2) == {}
    with pytest.raises(DamagedCheckpointError, match="'own1'"):
        read_boxes(from_files(tmp_path), manifest, {}, rank=1, world_size=2)
    with pytest.raises(DamagedCheckpointError, match="'own1'"):
        read_boxes(from_files(tmp_path), manifest, {}, rank=0, world_size=1)
