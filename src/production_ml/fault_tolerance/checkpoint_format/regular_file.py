"""Opening what should be a file of a checkpoint: a pipe in its place would wait for ever for somebody to write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path) -> int:
    """A descriptor to read the file at `path` by.

    Raises:
        OSError: It cannot be opened, or is no file: a directory (EISDIR), a pipe or a device (ENXIO).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ENXIO, "it is not a regular file", str(path))
