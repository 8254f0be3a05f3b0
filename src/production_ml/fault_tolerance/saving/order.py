"""A save that all ranks have agreed to, as plain data: it goes to the process that writes. No torch here."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace, SaveUnderWay
from production_ml.fault_tolerance.checkpoint_format.shard_layout import ShardLayout, lay_out

UNCHANGED: Final = "Training can go on; the newest committed checkpoint is unchanged."
_CURES: Final[Mapping[int, str]] = {
    errno.ENOSPC: "Free disk space, or keep fewer checkpoints (keep_last_n); the next save tries again.",
    errno.EDQUOT: "Free space in your quota, or keep fewer checkpoints (keep_last_n); the next save tries again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f); the next save tries again.",
    errno.EACCES: "Give this user the right (a store: credentials) to write there, or choose another checkpoint_dir.",
    errno.EPERM: "Give this user the right to write there, or choose another checkpoint_dir.",
    errno.EROFS: "Mount the file system for writing, or choose another checkpoint_dir.",
    errno.ENOTDIR: "Choose another checkpoint_dir, or move the file that is in its place.",
    errno.EEXIST: "Choose another checkpoint_dir, or move the file that is in its place.",
    errno.ENOENT: "The checkpoint_dir must be on a file system that all ranks share; a bucket has to be there before.",
    errno.ETIMEDOUT: "Look whether the store can be reached from here; the next save tries again.",
    errno.ECONNABORTED: "Look whether the store can be reached from here; the next save tries again.",
    errno.EBUSY: "The store is busy; the next save tries again.",
    errno.EREMOTEIO: "Look at the store's own log; the next save tries again.",
}


class Holding(NamedTuple):
    """A tensor's box that this rank writes."""

    name: str
    key: str
    """The name under which the bytes are in the shard: that of the first tensor that shares this memory."""
    dtype: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Where the box begins in the whole tensor."""
    box_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardContents:
    """What one rank's shard holds, and where; the same object as long as the layout stands."""

    holdings: tuple[Holding, ...]
    layout: ShardLayout

    @classmethod
    def of(cls, holdings: tuple[Holding, ...]) -> ShardContents:
        """Lay the boxes out; those that share memory are there once."""
        boxes = {held.key: (held.key, held.dtype, held.box_shape) for held in holdings}
        return cls(holdings, lay_out(boxes.values()))

    def to_json(self) -> list[Any]:
        """As JSON, from which `from_json` lays out the same shard."""
        return list(self.holdings)

    @classmethod
    def from_json(cls, encoded: list[Any]) -> ShardContents:
        """What `to_json` was asked of."""
        return cls.of(
            tuple(
                Holding(name, key, dtype, tuple(shape), tuple(offsets), tuple(box_shape))
                for name, key, dtype, shape, offsets, box_shape in encoded
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOrder:
    """What one rank writes for one checkpoint."""

    directory: CheckpointPlace
    step: int
    save_id: str
    rank: int
    world_size: int
    metrics: Mapping[str, float]
    """Rank 0's; the others' are not written."""
    values: Any
    """Rank 0's, in JSON."""
    rank_values: Any
    """This rank's own, in JSON; None where there is nothing that differs by rank."""
    contents: ShardContents
    on_disk: bool = True
    """Whether it is written, or kept in memory alone."""
    is_sent: bool = False
    """Whether a peer on another node is sent a copy."""

    @property
    def written(self) -> SaveUnderWay:
        """Where the ranks write until the commit."""
        return self.directory.incomplete(self.step, self.save_id)


def write_error(what: str, problem: OSError, *, meaning: str = UNCHANGED) -> CheckpointWriteError:
    """The error for a file system that does not take a checkpoint; `what` was tried."""
    reason = problem.strerror or str(problem)
    cure = _CURES.get(problem.errno or 0, "Check the file system; the next save tries again.")
    error = CheckpointWriteError(f"{what}: {reason}.", meaning=meaning, cure=cure)
    error.errno = problem.errno
    return error
