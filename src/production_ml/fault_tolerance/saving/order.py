"""A save that all ranks have agreed to: all that the background work needs, and nothing that training still changes."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.saving.shard_plan import Holding

UNCHANGED: Final = "Training can go on; the newest committed checkpoint is unchanged."
_CURES: Final[Mapping[int, str]] = {
    errno.ENOSPC: "Free disk space, or keep fewer checkpoints (keep_last_n); the next save tries again.",
    errno.EDQUOT: "Free space in your quota, or keep fewer checkpoints (keep_last_n); the next save tries again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f); the next save tries again.",
    errno.EACCES: "Give this user the right to write there, or choose another checkpoint_dir.",
    errno.EPERM: "Give this user the right to write there, or choose another checkpoint_dir.",
    errno.EROFS: "Mount the file system for writing, or choose another checkpoint_dir.",
    errno.ENOTDIR: "Choose another checkpoint_dir, or move the file that is in its place.",
    errno.EEXIST: "Choose another checkpoint_dir, or move the file that is in its place.",
    errno.ENOENT: "The checkpoint_dir must be on a file system that all ranks share.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOrder:
    """What one rank writes for one checkpoint."""

    directory: CheckpointDirectory
    step: int
    save_id: str
    rank: int
    world_size: int
    metrics: Mapping[str, float]
    """Rank 0's; the others' are not written."""
    values: Any
    """Rank 0's, in JSON."""
    holdings: Sequence[Holding]
    staged: Mapping[str, torch.Tensor]
    """By key: contiguous CPU copies that stay as they are until the save has ended."""

    @property
    def written(self) -> Path:
        """Where the ranks write until the commit."""
        return self.directory.incomplete(self.step, self.save_id)


def write_error(what: str, problem: OSError, *, meaning: str = UNCHANGED) -> CheckpointWriteError:
    """The error for a file system that does not take a checkpoint; `what` was tried."""
    reason = problem.strerror or str(problem)
    cure = _CURES.get(problem.errno or 0, "Check the file system; the next save tries again.")
    return CheckpointWriteError(f"{what}: {reason}.", meaning=meaning, cure=cure)
