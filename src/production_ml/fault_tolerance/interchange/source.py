"""One checkpoint as a source of whole tensors, whatever world size wrote it: each is verified before anyone sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

import torch

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, intersection, whole
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry
from production_ml.fault_tolerance.checkpoint_format.read_lease import read_lease
from production_ml.fault_tolerance.checkpoint_format.shard_file import DTYPES, ShardReader


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
        self, directory: CheckpointDirectory, step: int, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self.path = directory.committed(step)
        self._on_bytes = on_bytes
        with contextlib.ExitStack() as opened:
            opened.enter_context(read_lease(self.path))
            self.manifest = directory.manifest(step)
            self._open = opened.pop_all()
        self._readers: dict[str, ShardReader] = {}

    def __enter__(self) -> CheckpointSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, put together from its boxes, as a new CPU tensor.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        return self.box(name, whole(self.manifest.tensors[name].shape))

    def box(self, name: str, box: Box) -> torch.Tensor:
        """A part of a tensor, as a new contiguous CPU tensor.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        entry = self.manifest.tensors[name]
        found = torch.empty(box.shape, dtype=DTYPES[entry.dtype])
        for chunk in entry.chunks:
            self._fill(name, entry.dtype, chunk, box, found)
        self._on_bytes(found.nbytes)
        return found

    def chunk(self, name: str, chunk: ChunkEntry) -> torch.Tensor:
        """One box as it was written.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        return self._reader(chunk.file).read(name, self.manifest.tensors[name].dtype, chunk)

    def _fill(self, name: str, dtype: str, chunk: ChunkEntry, box: Box, found: torch.Tensor) -> None:
        held = Box(chunk.offsets, chunk.shape)
        common = intersection(box, held)
        if common is None:
            return
        target = found[common.slices_within(box)]
        if common == held and target.is_contiguous():
            self._reader(chunk.file).read_into(name, dtype, chunk, target)
        else:
            target.copy_(self.chunk(name, chunk)[common.slices_within(held)])

    def _reader(self, file: str) -> ShardReader:
        if file not in self._readers:
            reader = ShardReader(self.path / file, self.manifest.files[file], step=self.manifest.step)
            self._readers[file] = self._open.enter_context(reader)
        return self._readers[file]
