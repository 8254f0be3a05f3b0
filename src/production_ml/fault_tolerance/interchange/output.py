"""Durable output at once or not at all: a file or directory gets its name when all of its bytes are on the disk."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from production_ml.core.errors import CheckpointWriteError, InputFileError
from production_ml.storage.durable import fsync_directory


@contextlib.contextmanager
def durable_file(target: Path) -> Iterator[io.FileIO]:
    """A file to write, unbuffered; it takes the name `target`, and the place of what is there, when the block ends.

    Raises:
        InputFileError: There is no directory to write it to, or a directory has its name.
        CheckpointWriteError: The file system does not take it. Nothing is left behind.
    """
    _check_parent(target)
    if target.is_dir():
        raise InputFileError(target, "is a directory, where a file is to be written", cure="Give it another name.")
    temporary = _temporary(target)
    with _as_write_error(target):
        try:
            with io.FileIO(temporary, "wb") as file:
                yield file
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
        fsync_directory(target.parent)


@contextlib.contextmanager
def durable_directory(target: Path) -> Iterator[Path]:
    """An empty directory to fill; it takes the name `target`, which must be free, when the block ends.

    Raises:
        InputFileError: The name is taken, or there is no directory to make it in.
        CheckpointWriteError: The file system does not take it. Nothing is left behind.
    """
    _check_parent(target)
    if target.exists():
        raise InputFileError(target, "exists already", cure="Give another name, or move it away.")
    temporary = _temporary(target)
    with _as_write_error(target):
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _fsync_file(file)
            fsync_directory(temporary)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(target.parent)


def write_all(file: io.FileIO, data: memoryview | bytes) -> None:
    """Write all of `data`; the system may take it in pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise InputFileError(target.parent, "is not a directory that a file can be written to", cure="Make it first.")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_write_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise CheckpointWriteError(
            f"{target}: could not be written ({problem.strerror or problem}).",
            meaning="Nothing was left behind, and no checkpoint was changed.",
            cure="Make room, or choose a place that this user may write to, and try again.",
        ) from problem
