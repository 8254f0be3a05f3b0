"""The floors: the bytes of a state moved by nothing but memcpy, write+fsync and read; and whether a file is cached."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import torch

_PIECE_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 30
"""Larger than any cache; a larger state goes through it again and again, so that it fits beside the state."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class Floors:
    """Warm buffers and one raw file.

    Args:
        size_bytes: What each floor moves.
        path: The raw file.
    """

    def __init__(self, size_bytes: int, path: Path) -> None:
        self._size = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.path = path
        length = min(self._size, _BUFFER_BYTES)
        # mmap gives page-aligned memory, which O_DIRECT needs.
        self._memory = mmap.mmap(-1, length)
        self._bytes = memoryview(self._memory)
        self._source = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._source.random_(generator=torch.Generator().manual_seed(0))
        self._target = torch.ones_like(self._source)

    def memcpy(self, *, threads: int) -> None:
        """Copy the state's bytes between warm buffers."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for begin, end in self._spans(len(self._bytes)):
                self._target[: end - begin].copy_(self._source[: end - begin])
        finally:
            torch.set_num_threads(before)

    def memcpy_to_fresh_memory(self) -> None:
        """Copy into memory that the system has to find and clear first, as in a process that has just started."""
        for begin, end in self._spans(len(self._bytes)):
            torch.empty(end - begin, dtype=torch.uint8).copy_(self._source[: end - begin])

    def write(self, *, direct: bool) -> None:
        """Write and fsync a new file."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0), 0o644)
        try:
            for begin, end in self._spans(_PIECE_BYTES):
                place = begin % len(self._bytes)
                _write_all(file, self._bytes[place : place + end - begin])
            os.fsync(file)
        finally:
            os.close(file)
        fsync_path(self.path.parent)

    def read(self, *, direct: bool) -> None:
        """Read the raw file into warm memory."""
        file = os.open(self.path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            while os.readv(file, [self._bytes[:_PIECE_BYTES]]):
                pass
        finally:
            os.close(file)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _spans(self, piece: int) -> Iterable[tuple[int, int]]:
        return ((begin, min(begin + piece, self._size)) for begin in range(0, self._size, piece))


def _write_all(file: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(file, rest) :]


def prewarm(size_bytes: int) -> None:
    """Touch memory once and give it back: in a virtual machine the first touch of a page ever is very slow."""
    torch.ones(size_bytes, dtype=torch.uint8)


def fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file or directory durable that a library wrote without doing so."""
    if path.is_dir():
        for entry in path.iterdir():
            fsync_tree(entry)
    fsync_path(path)


def files_under(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def drop_from_cache(paths: Iterable[Path]) -> float:
    """Take files out of the page cache; returns the share of their pages that is there still."""
    cached = total = 0
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # a page that is not written yet cannot be dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            found, pages = _cached_pages(file)
        finally:
            os.close(file)
        cached, total = cached + found, total + pages
    return cached / total if total else 0.0


def _cached_pages(file: int) -> tuple[int, int]:
    size = os.fstat(file).st_size
    if not size:
        return 0, 0
    pages = -(-size // mmap.PAGESIZE)
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    _LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    _LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    vector = ctypes.create_string_buffer(pages)
    try:
        if _LIBC.mincore(address, size, vector):
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        _LIBC.munmap(address, size)
    return sum(byte & 1 for byte in vector.raw), pages
