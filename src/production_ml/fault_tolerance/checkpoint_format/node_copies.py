"""Shards that the ranks of a node share: one of them fetches a shard to the node, and the others read it there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.structured_logging import log_event
from production_ml.storage.base import ObjectStore
from production_ml.storage.hashing import hash_bytes

_LOG: Final = logging.getLogger(__name__)
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - below it, a folder of this user alone
_PIECE_BYTES: Final = 16 << 20
_PARALLEL: Final = 4
_FORGOTTEN_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class NodeCopy:
    """A shard on this node, there until its last user lets go of it."""

    path: Path
    _use: int

    def release(self) -> None:
        """Let go. Not before all ranks have read: who comes later would fetch it anew."""
        with _locked(_fetch_lock(self.path)):
            # Unlocked on purpose, not by closing alone: a forked worker may hold a copy of the descriptor.
            fcntl.flock(self._use, fcntl.LOCK_UN)
            os.close(self._use)
            descriptor = os.open(_use_lock(self.path), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another rank still reads it
            finally:
                os.close(descriptor)
            for path in (self.path, _use_lock(self.path), _fetch_lock(self.path)):
                path.unlink(missing_ok=True)


class NodeCopies:
    """Copies of objects that never change, such as the shards of one save.

    A copy is a convenience: where there is no room for it, or the disk fails, there is none, and the store is read. It
    is not verified here, but by its readers; what a reader finds damaged in a copy has to be asked of the store before
    it is believed, for it may be this node's disk that is bad.

    Args:
        folder: Where they are, for all processes of this node; by default memory (`/dev/shm`) where there is room for
            the shard twice, and else the directory for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def fetch(self, store: ObjectStore, key: str) -> NodeCopy | None:
        """The object's copy; made by the process that asks first, while the others wait for it. None: read the store.

        Raises:
            OSError: The store does not give it.
        """
        size_bytes = store.size(key)
        folder = self._folder_for(size_bytes)
        if folder is None:
            return None
        path = folder / hash_bytes(f"{store.address}/{key}".encode())
        try:
            with _locked(_fetch_lock(path)):
                if not path.exists() or path.stat().st_size != size_bytes:
                    _download(store, key, size_bytes, path)
                use = os.open(_use_lock(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(use, fcntl.LOCK_SH)
                return NodeCopy(path, use)
        except _NodeError as problem:
            what = f"{path} took no copy of {key} ({problem}); every rank reads it from the store."
            log_event(_LOG, "node_copy_failed", what, level=logging.WARNING)
            return None

    def _folder_for(self, size_bytes: int) -> Path | None:
        own = f"production-ml-{os.getuid()}"
        places = (_MEMORY / own, Path(tempfile.gettempdir(), own)) if self._folder is None else (self._folder,)
        for place in places:
            with contextlib.suppress(OSError):
                place.mkdir(mode=0o700, parents=self._folder is not None, exist_ok=True)
                # A folder of that name that somebody else made could hold anything.
                if place.lstat().st_uid == os.getuid() and not place.is_symlink():
                    _clear_forgotten(place)
                    if shutil.disk_usage(place).free > 2 * size_bytes:
                        return place
        return None


class _NodeError(Exception):
    """This node, and not the store, is what fails."""


def _download(store: ObjectStore, key: str, size_bytes: int, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")

    def fetch(begin: int) -> None:
        piece = memoryview(store.get(key, begin, min(begin + _PIECE_BYTES, size_bytes)))
        while piece:
            try:
                count = os.pwrite(descriptor, piece, begin)
            except OSError as problem:
                raise _NodeError(problem.strerror) from problem
            begin, piece = begin + count, piece[count:]

    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as problem:
        raise _NodeError(problem.strerror) from problem
    try:
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="node-copy") as pool:
            list(pool.map(fetch, range(0, size_bytes, _PIECE_BYTES)))
        temporary.rename(path)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _clear_forgotten(folder: Path) -> None:
    """Remove what killed processes left: nobody holds it, and it is old."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            is_old = SYSTEM_CLOCK.wall_seconds() - path.stat().st_mtime > _FORGOTTEN_SECONDS
            if is_old and not _is_used(path):
                path.unlink()


def _is_used(path: Path) -> bool:
    try:
        descriptor = os.open(_use_lock(path.with_name(path.name.partition(".")[0])), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise _NodeError(problem.strerror) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch_lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.fetch")


def _use_lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.use")
