"""A checkpoint made piece by piece, in little memory and by one process: what an import writes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

import torch

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError, InputFileError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.interchange.shards import ShardBoxes
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.parts import Part, merge_parts

SHARD_BYTES: Final = 256 << 20
"""A shard is written when its tensors come to this much, so that an import holds twice that and no more."""
_UNCHANGED: Final = "Nothing was committed, and the checkpoints that are there are unchanged."


class CheckpointBuilder:
    """Writes one checkpoint. Use it in a `with`: what was not committed at its end leaves no trace.

    Args:
        directory: Where it is to be; made if it is not there.
        step: Its step, which must be free.
        shard_bytes: How much to collect before it is written.
        on_bytes: Called with the size of each piece that was taken, to show how far it is.

    Raises:
        InputFileError: A checkpoint of that step is there.
        CheckpointWriteError: The directory cannot be made.
    """

    def __init__(
        self,
        directory: CheckpointPlace,
        step: int,
        *,
        shard_bytes: int = SHARD_BYTES,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        if directory.identity(step) is not None:
            raise InputFileError(
                str(directory.committed(step)), "exists already", cure="Choose another --step, or move that one away."
            )
        self._directory = directory
        self._step = step
        self._shard_bytes = shard_bytes
        self._on_bytes = on_bytes
        self._save_id = secrets.token_hex(8)
        self._parts: list[Part] = []
        self._shards = 0
        self._content = ShardBoxes()
        self._is_committed = False
        try:
            self._lock = directory.begin(step, self._save_id)
        except OSError as problem:
            raise self._write_error(problem) from problem
        self._written = directory.incomplete(step, self._save_id)

    def __enter__(self) -> CheckpointBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._is_committed:
                with contextlib.suppress(OSError):
                    self._directory.abandon(self._written)
        finally:
            self._lock.release()

    def add(self, name: str, data: torch.Tensor, *, offsets: tuple[int, ...] | None = None, shape: Any = None) -> None:
        """Take a tensor, or one box of it, which must not change until the commit.

        Args:
            name: The tensor's name in the checkpoint.
            data: Its elements, on any device and in any stride.
            offsets: Where the box begins in the whole tensor; None for a whole tensor.
            shape: The shape of the whole tensor, for a box.

        Raises:
            CheckpointWriteError: A checkpoint cannot hold it, or the file system does not take it.
        """
        self._content.add(name, data, offsets=offsets, shape=tuple(data.shape if shape is None else shape))
        self._on_bytes(data.numel() * data.element_size())
        if self._content.size_bytes >= self._shard_bytes:
            self._flush()

    def commit(self, values: Any, metrics: Mapping[str, float]) -> Manifest:
        """Make it a checkpoint, and read all of it back.

        Raises:
            CheckpointWriteError: The file system does not take it, boxes do not make up their tensor, or what is read
                back is not what was written.
        """
        self._flush()
        whole_parts = merge_parts(self._parts)
        manifest = Manifest(
            step=self._step,
            save_id=self._save_id,
            created_at=SYSTEM_CLOCK.wall_seconds(),
            world_size=1,
            metrics=metrics,
            values=values,
            files=whole_parts.files,
            tensors=whole_parts.tensors,
        )
        try:
            self._directory.commit(self._written, manifest)
        except OSError as problem:
            raise self._write_error(problem) from problem
        self._is_committed = True
        for damage in verify_checkpoint(self._directory, self._step):
            raise CheckpointWriteError(
                f"The checkpoint was written, but is not what was read: {damage}.",
                cure="Check the disk; the checkpoint's directory is kept as evidence.",
            )
        return manifest

    def _flush(self) -> None:
        if not self._content.holdings:
            return
        try:
            self._parts.append(self._content.write(self._written, self._shards))
        except OSError as problem:
            raise self._write_error(problem) from problem
        self._shards += 1
        self._content = ShardBoxes()

    def _write_error(self, problem: OSError) -> CheckpointWriteError:
        what = f"The checkpoint of step {self._step} could not be written to {self._directory.url}"
        return write_error(what, problem, meaning=_UNCHANGED)
