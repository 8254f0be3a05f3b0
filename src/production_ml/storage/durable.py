"""Writes that survive a power cut: data, then name, then directory, each fsynced before the next."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NOT_FOR_DIRECTORIES = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)


def fsync_directory(directory: Path) -> None:
    """Make the listing of `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some network filesystems sync no directories at all; nothing better can be done there (PostgreSQL's
        # fsync_fname() passes over the same errors).
        if problem.errno not in _NOT_FOR_DIRECTORIES:
            raise
    finally:
        os.close(descriptor)


def make_directory_durably(directory: Path) -> None:
    """Make `directory` and what is missing above it, so that a power cut takes none of them back."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_directory(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write and fsync a file that nobody reads before it is complete."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace `path` so that a reader, or a reboot, finds the old content or the new and nothing between."""
    # Random, because on a shared filesystem two hosts' processes may have the same pid (in a container, often 1).
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        write_durably(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
    fsync_directory(path.parent)
