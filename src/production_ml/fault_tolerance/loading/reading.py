"""Reading: this rank's boxes out of verified blocks, and every other block verified by one rank or another."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch

from production_ml.core.distributed_env import DistributedEnv
from production_ml.fault_tolerance.checkpoint_format.blocks import BLOCK_BYTES, block_count, block_range
from production_ml.fault_tolerance.checkpoint_format.boxes import Box, intersection
from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource
from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_file import LocatedChunk, ShardReader
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES, as_bytes
from production_ml.fault_tolerance.checkpoint_format.verification import chunks_by_file
from production_ml.fault_tolerance.loading.fresh_memory import empty

Verify: TypeAlias = Literal["full", "sampled", "off"]
SAMPLED_SHARE: Final = 1 / 16
"""The share of blocks that `verify="sampled"` compares with their hashes."""
_MOST_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class _Task:
    """Some work on a shard that another thread may do."""

    size_bytes: int
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Copy:
    """A box that lies in one piece in a block, and the part of it that is wanted."""

    begin: int
    """In elements from the begin of the block."""
    shape: tuple[int, ...]
    source: tuple[slice, ...]
    """The part within the box."""
    target: tuple[slice, ...]
    """The same part within what is wanted."""


def read_boxes(
    open_source: Callable[[str], ByteSource],
    manifest: Manifest,
    boxes: Mapping[str, Box],
    *,
    rank: int,
    world_size: int,
    verify: Verify = "full",
) -> dict[str, torch.Tensor]:
    """Read and verify.

    Each shard has a rank that verifies all of it, so that the ranks together see every byte, whatever they load.

    Args:
        open_source: Opens a shard by its name in the manifest.
        manifest: The checkpoint's verified manifest.
        boxes: Which part of which tensor is wanted.
        rank: This rank.
        world_size: The number of ranks that load together.
        verify: `full` compares every block of the checkpoint with its hash. `sampled` compares a random sixteenth of
            the blocks that are wanted, `off` none; sizes and headers are compared always.

    Returns:
        The boxes as new contiguous CPU tensors.

    Raises:
        DamagedCheckpointError: Something is not what was written.
        CheckpointError: The system refuses to read it.
    """
    found = {name: empty(box.shape, DTYPES[manifest.tensors[name].dtype]) for name, box in boxes.items()}
    with contextlib.ExitStack() as readers:
        tasks: list[_Task] = []
        for number, (file, chunks) in enumerate(chunks_by_file(manifest).items()):
            is_mine = number % world_size == rank and verify == "full"
            wanted = [(name, dtype, chunk) for name, dtype, chunk in chunks if _is_wanted(boxes.get(name), chunk)]
            if wanted or is_mine:
                reader = readers.enter_context(ShardReader(open_source(file), manifest.files[file], step=manifest.step))
                shard = _ShardTasks(reader, verify)
                for name, dtype, chunk in wanted:
                    tasks += shard.read(name, dtype, chunk, boxes[name], found[name])
                for name, dtype, chunk in chunks if is_mine else []:
                    tasks += shard.verify_rest(name, dtype, chunk)
        _run(tasks)
    return found


class _ShardTasks:
    """Makes the tasks of one shard, and keeps in mind which blocks are seen by them."""

    def __init__(self, reader: ShardReader, verify: Verify) -> None:
        self._reader = reader
        self._verify = verify
        self._seen: set[tuple[str, int]] = set()

    def read(self, name: str, dtype: str, chunk: ChunkEntry, box: Box, target: torch.Tensor) -> Iterator[_Task]:
        """Read what `box` wants of `chunk` into `target`, which holds the box."""
        located = self._reader.locate(name, dtype, chunk)
        held = Box(chunk.offsets, chunk.shape)
        if held == box:
            data = as_bytes(target)
            for index in range(len(located.hashes)):
                begin, end = block_range(located.size_bytes, index)
                yield self._block(located, chunk.key, index, data[begin:end])
            return
        common = intersection(box, held)
        if common is not None:
            yield from self._part(located, dtype, chunk, common, target[common.slices_within(box)])

    def verify_rest(self, name: str, dtype: str, chunk: ChunkEntry) -> Iterator[_Task]:
        """Verify the blocks of `chunk` that nothing else has read."""
        located = self._reader.locate(name, dtype, chunk)
        for index in range(len(located.hashes)):
            if self._note(chunk.key, index):
                begin, end = block_range(located.size_bytes, index)
                yield _Task(end - begin, lambda index=index: self._reader.verify_block(located, index))  # type: ignore[misc]

    def _block(self, located: LocatedChunk, key: str, index: int, out: memoryview) -> _Task:
        self._note(key, index)
        is_checked = self._is_checked()

        def run() -> None:
            self._reader.prefetch(located, index)
            self._reader.read_block(located, index, out, is_checked=is_checked)

        return _Task(len(out), run)

    def _part(
        self, located: LocatedChunk, dtype: str, chunk: ChunkEntry, common: Box, target: torch.Tensor
    ) -> Iterator[_Task]:
        """Read the blocks that `common`, a part of `chunk`, touches, each into memory that is let go at once.

        A column touches all blocks of its chunk, which may be larger than what is free.
        """
        inner = common.slices_within(Box(chunk.offsets, chunk.shape))
        strides, element_bytes = _strides(chunk.shape), ELEMENT_BYTES[dtype]
        first = sum(part.start * stride for part, stride in zip(inner, strides, strict=True))
        last = sum((part.stop - 1) * stride for part, stride in zip(inner, strides, strict=True))
        wanted = Box(tuple(part.start for part in inner), common.shape)
        for index in range(first * element_bytes // BLOCK_BYTES, block_count((last + 1) * element_bytes)):
            begin, end = block_range(located.size_bytes, index)
            copies = list(_copies(chunk.shape, wanted, begin // element_bytes, end // element_bytes))
            if copies:
                self._note(chunk.key, index)
                yield self._part_of_block(located, index, DTYPES[dtype], copies, target)

    def _part_of_block(
        self, located: LocatedChunk, index: int, dtype: torch.dtype, copies: list[_Copy], target: torch.Tensor
    ) -> _Task:
        begin, end = block_range(located.size_bytes, index)
        is_checked = self._is_checked()

        def run() -> None:
            scratch = torch.empty(end - begin, dtype=torch.uint8)
            self._reader.read_block(located, index, as_bytes(scratch), is_checked=is_checked)
            elements = scratch.view(dtype)
            for copy in copies:
                piece = elements[copy.begin : copy.begin + math.prod(copy.shape)].view(copy.shape)
                target[copy.target].copy_(piece[copy.source])

        return _Task(end - begin, run)

    def _note(self, key: str, index: int) -> bool:
        """Whether a block is seen for the first time."""
        if (key, index) in self._seen:
            return False
        self._seen.add((key, index))
        return True

    def _is_checked(self) -> bool:
        # Not a secret: a sample that is drawn anew at each load finds in time what one load missed.
        return self._verify == "full" or (self._verify == "sampled" and random.random() < SAMPLED_SHARE)  # noqa: S311


def _is_wanted(box: Box | None, chunk: ChunkEntry) -> bool:
    return box is not None and intersection(box, Box(chunk.offsets, chunk.shape)) is not None


def _copies(shape: tuple[int, ...], wanted: Box, begin: int, end: int) -> Iterator[_Copy]:
    """What to copy out of the elements `begin` to `end` of a contiguous tensor of `shape`, so as to fill `wanted`."""
    done = 0
    for piece in _boxes_of_range(shape, begin, end):
        common = intersection(piece, wanted)
        if common is not None:
            yield _Copy(done, piece.shape, common.slices_within(piece), common.slices_within(wanted))
        done += math.prod(piece.shape)


def _boxes_of_range(shape: tuple[int, ...], begin: int, end: int) -> Iterator[Box]:
    """The elements `begin` to `end` of a contiguous tensor as boxes, in order: a part of a row, whole rows, a part."""
    if begin >= end:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first_whole, end_whole = -(-begin // row), end // row
    if first_whole > end_whole:
        yield from _boxes_of_row(shape, end_whole, begin - end_whole * row, end - end_whole * row)
        return
    yield from _boxes_of_row(shape, first_whole - 1, begin - (first_whole - 1) * row, row)
    if first_whole < end_whole:
        yield Box((first_whole,) + (0,) * len(shape[1:]), (end_whole - first_whole, *shape[1:]))
    yield from _boxes_of_row(shape, end_whole, 0, end - end_whole * row)


def _boxes_of_row(shape: tuple[int, ...], row: int, begin: int, end: int) -> Iterator[Box]:
    for box in _boxes_of_range(shape[1:], begin, end):
        yield Box((row, *box.offsets), (1, *box.shape))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


def _run(tasks: list[_Task]) -> None:
    """Do all tasks, several at once; of several failures the first in order is raised."""
    batches = list(_batches(tasks))
    with ThreadPoolExecutor(_threads(), thread_name_prefix="checkpoint-read") as pool:
        futures = [pool.submit(_run_in_order, batch) for batch in batches]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_in_order(batch: list[_Task]) -> None:
    for task in batch:
        task.run()


def _batches(tasks: list[_Task]) -> Iterator[list[_Task]]:
    """Neighbours together until they are worth a thread's attention: a model may have ten thousand small tensors."""
    numbered = itertools.accumulate((task.size_bytes for task in tasks), initial=0)
    for _, group in itertools.groupby(zip(tasks, numbered, strict=False), key=lambda pair: pair[1] // BLOCK_BYTES):
        yield [task for task, _ in group]


def _threads() -> int:
    """This process's share of the cores."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // max(1, DistributedEnv.read().local_world_size)))
