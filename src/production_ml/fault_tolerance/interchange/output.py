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
        InputFileError: There is no directory to write it to, or a directory, device or pipe has its name.
        CheckpointWriteError: The file system does not take it. Nothing is left behind.
    """
    # os.replace would put the file in the place of a device or pipe as well: /dev/null, for whoever may write to /dev.
    if target.exists() and not target.is_file():
        what = "is a directory" if target.is_dir() else "is a device or pipe"
        raise InputFileError(target, f"{what}, where a file is to be written", cure="Give it another name.")
    with _named_when_done(target) as temporary, io.FileIO(temporary, "wb") as file:
        yield file
        os.fsync(file.fileno())


@contextlib.contextmanager
def durable_directory(target: Path) -> Iterator[Path]:
    """An empty directory to fill; it takes the name `target`, which must be free, when the block ends.

    Raises:
        InputFileError: The name is taken, or there is no directory to make it in.
        CheckpointWriteError: The file system does not take it. Nothing is left behind.
    """
    if target.exists():
        raise InputFileError(target, "exists already", cure="Give another name, or move it away.")
    with _named_when_done(target) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _fsync_file(file)
        fsync_directory(temporary)


@contextlib.contextmanager
def what_broke_it_off() -> Iterator[None]:
    """Around `torch.save`: what broke it off comes out, such as a full disk or Ctrl-C.

    torch.save ends its zip file even then, which fails in turn: a RuntimeError of "unexpected pos" that hides the rest.
    """
    try:
        yield
    except RuntimeError as hiding:
        hidden = hiding.__context__
        if isinstance(hidden, OSError) or (hidden is not None and not isinstance(hidden, Exception)):
            raise hidden from None
        raise


def write_all(file: io.FileIO, data: memoryview | bytes) -> None:
    """Write all of `data`; the system may take it in pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _named_when_done(target: Path) -> Iterator[Path]:
    """A free name beside `target`: what the block makes there gets the name `target` at its end, or is removed."""
    if not target.parent.is_dir():
        raise InputFileError(target.parent, "is not a directory that a file can be written to", cure="Make it first.")
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    with _as_write_error(target):
        try:
            yield temporary
            temporary.replace(target)
        except BaseException:
            _remove(temporary)
            raise
        # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
        fsync_directory(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
