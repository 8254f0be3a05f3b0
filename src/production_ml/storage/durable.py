"""Writes that survive a power cut: data, then name, then directory, each fsynced before the next."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    """Make the listing of `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write and fsync a file that nobody reads before it is complete."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace `path` so that a reader, or a reboot, finds the old content or the new and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_durably(temporary, data)
    os.replace(temporary, path)
    # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
    fsync_directory(path.parent)
