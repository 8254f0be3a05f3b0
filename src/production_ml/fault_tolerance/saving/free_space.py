"""How much room a disk has for a checkpoint: asked before a save, since a save that fails has cost its writing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LARGEST_RESERVE_BYTES: Final = 256 << 20
_RESERVE_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What an ordinary user may still write to a file system. A quota does not show here, but only when it is hit."""

    free_bytes: int
    reserve_bytes: int
    """What a checkpoint should leave, for logs and for the other users of the disk: 256 MiB, or 1% of a small disk."""
    has_free_files: bool = True
    """False where no further file can be made, however many bytes are free."""

    def has_room_for(self, needed_bytes: int) -> bool:
        """Whether so many bytes can be written and the reserve be left."""
        return self.has_free_files and self.free_bytes >= needed_bytes + self.reserve_bytes


def free_space(path: Path, *, reserve_bytes: int | None = None) -> FreeSpace | None:
    """The room on the file system of `path`; None where it does not tell, as some network file systems do not.

    Args:
        path: A directory that is there.
        reserve_bytes: What to leave free; by default 256 MiB, or 1% of a disk that is smaller than 25 GiB.
    """
    try:
        status = os.statvfs(path)
    except OSError:  # whatever is wrong there, the save itself tells it better
        return None
    if status.f_blocks == 0:
        return None
    share_bytes = int(status.f_blocks * status.f_frsize * _RESERVE_SHARE)
    return FreeSpace(
        free_bytes=status.f_bavail * status.f_frsize,
        reserve_bytes=min(_LARGEST_RESERVE_BYTES, share_bytes) if reserve_bytes is None else reserve_bytes,
        has_free_files=status.f_files == 0 or status.f_favail > 0,  # btrfs counts no files
    )


def full_disk_error(problem: BaseException) -> OSError | None:
    """The system's word that a disk or a quota is full, if that is what `problem` comes from."""
    for cause in _causes(problem):
        # Not only the system's own errors: what another process or rank met comes here with its number alone.
        number = getattr(cause, "errno", None)
        if number in _FULL:
            return OSError(number, os.strerror(number))
    return None


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:  # `raise error from error` makes a circle
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__
