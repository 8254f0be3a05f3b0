"""Where a shard's bytes come from, and the plainest such place: a file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from production_ml.fault_tolerance.checkpoint_format.manifest import unreadable
from production_ml.fault_tolerance.checkpoint_format.regular_file import open_regular


class ByteSource(Protocol):
    """Bytes at positions. It is read by several threads at once, so there is no cursor to share."""

    name: str
    """For messages: a path or a URL."""
    size_bytes: int

    def readinto(self, position: int, buffer: memoryview) -> int:
        """Fill `buffer` from `position` on; fewer bytes than it holds mean that there are no more."""
        ...

    def prefetch(self, position: int, size_bytes: int) -> None:
        """These bytes will be wanted soon."""
        ...

    def close(self) -> None: ...


class FileSource:
    """A file.

    Raises:
        DamagedCheckpointError: It is missing, or the disk cannot read it.
        CheckpointError: The system refuses to read it.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.name = str(path)
        self._path = path
        self._step = step
        try:
            self._descriptor = open_regular(path)
            self.size_bytes = os.fstat(self._descriptor).st_size
        except OSError as problem:
            raise unreadable(path, problem, step=step) from problem

    def readinto(self, position: int, buffer: memoryview) -> int:
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done:]], position + done)
                if not count:
                    break
                done += count
        except OSError as problem:
            raise unreadable(self._path, problem, step=self._step) from problem
        return done

    def prefetch(self, position: int, size_bytes: int) -> None:
        # Some network file systems take no advice; they are read without.
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, position, size_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        os.close(self._descriptor)
