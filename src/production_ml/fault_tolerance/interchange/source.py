"""One checkpoint as a source of whole tensors, whatever world size wrote it, each verified first. No torch here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
"""Elements as their bytes: the last dimension is one element."""


class CheckpointSource:
    """Reads tensors of one checkpoint, one at a time; needs no process group. Use it in a `with`.

    It holds a lease, so that a training beside it does not prune the checkpoint meanwhile.

    Args:
        directory: Where the checkpoint is.
        step: Which one.
        on_bytes: Called with the size of each tensor that was read, to show how far it is.

    Raises:
        DamagedCheckpointError: Its manifest is missing or damaged.
        CheckpointError: It cannot be read for another reason, such as a newer format.
    """

    def __init__(
        self, directory: CheckpointPlace, step: int, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self.name = str(directory.committed(step))
        """For messages."""
        self._directory = directory
        self._on_bytes = on_bytes
        self._readers: dict[str, ShardReader] = {}
        with contextlib.ExitStack() as opened:
            opened.enter_context(directory.reading(step))
            self.manifest = directory.manifest(step)
            self._open = opened.pop_all()

    def __enter__(self) -> CheckpointSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def whole(self, name: str) -> Bytes:
        """A tensor, put together from its boxes: `[*shape, bytes of an element]`.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        shape = self.manifest.tensors[name].shape
        return self.box(name, (0,) * len(shape), shape)

    def box(self, name: str, offsets: Sequence[int], shape: Sequence[int]) -> Bytes:
        """A part of a tensor: `offsets[d] ≤ index < offsets[d] + shape[d]` in every dimension d.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        entry = self.manifest.tensors[name]
        found = np.empty((*shape, ELEMENT_BYTES[entry.dtype]), np.uint8)
        for chunk in entry.chunks:
            self._fill(name, entry.dtype, chunk, offsets, found)
        self._on_bytes(found.nbytes)
        return found

    def _fill(self, name: str, dtype: str, chunk: ChunkEntry, offsets: Sequence[int], found: Bytes) -> None:
        common = _overlap(offsets, found.shape[:-1], chunk.offsets, chunk.shape)
        if common is None:
            return
        begin, end = common
        target = found[_slices(begin, end, offsets)]
        if target.shape[:-1] == chunk.shape and target.flags.c_contiguous:
            self._read(name, dtype, chunk, target)
            return
        held = np.empty((*chunk.shape, found.shape[-1]), np.uint8)
        self._read(name, dtype, chunk, held)
        target[...] = held[_slices(begin, end, chunk.offsets)]

    def _read(self, name: str, dtype: str, chunk: ChunkEntry, out: Bytes) -> None:
        self._reader(chunk.file).read_into(name, dtype, chunk, out.reshape(-1).data)

    def _reader(self, file: str) -> ShardReader:
        if file not in self._readers:
            source = self._directory.source(self.manifest.step, file)
            reader = ShardReader(source, self.manifest.files[file], step=self.manifest.step)
            self._readers[file] = self._open.enter_context(reader)
        return self._readers[file]


def _overlap(
    offsets: Sequence[int], shape: Sequence[int], other_offsets: Sequence[int], other_shape: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Begin and end of what two boxes have in common; None where that is nothing."""
    begin = [max(one, other) for one, other in zip(offsets, other_offsets, strict=True)]
    end = [
        min(one + size, other + other_size)
        for one, size, other, other_size in zip(offsets, shape, other_offsets, other_shape, strict=True)
    ]
    return None if any(stop <= start for start, stop in zip(begin, end, strict=True)) else (begin, end)


def _slices(begin: Sequence[int], end: Sequence[int], base: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start - first, stop - first) for start, stop, first in zip(begin, end, base, strict=True))
