"""A directory as an object store: what tests, single machines and shared file systems need no server for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from production_ml.storage.base import StoredObject, check_key
from production_ml.storage.durable import fsync_directory

_UNFINISHED: Final = ".unfinished-"


class LocalStore:
    """Objects are files below a directory, each written beside its place and then moved there.

    Args:
        url: `file:///path` or a path.
    """

    def __init__(self, url: str) -> None:
        self._root = Path(unquote(urlsplit(url).path) if url.startswith("file://") else url)
        self.address = url.rstrip("/")

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        path = self._path(key)
        temporary = path.with_name(f"{_UNFINISHED}{path.name}.{os.urandom(4).hex()}")
        try:
            with self._created(temporary).open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
        fsync_directory(path.parent)

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        with self._path(key).open("rb") as file:
            file.seek(begin)
            return file.read(-1 if end is None else max(0, end - begin))

    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def listing(self, folder: str = "") -> list[StoredObject]:
        listed = []
        for path in self._files(folder):
            if not path.name.startswith(_UNFINISHED):
                # It may be deleted while it is listed.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    key = path.relative_to(self._root).as_posix()
                    listed.append(StoredObject(key, status.st_size, status.st_mtime))
        return sorted(listed, key=lambda found: found.key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break  # it still holds something, or is gone

    def clear_unfinished(self, before: float) -> int:
        cleared = 0
        for path in self._files(""):
            with contextlib.suppress(FileNotFoundError):
                if path.name.startswith(_UNFINISHED) and path.stat().st_mtime < before:
                    path.unlink()
                    cleared += 1
        return cleared

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _files(self, folder: str) -> Iterable[Path]:
        below = self._path(folder) if folder else self._root
        return (Path(parent, name) for parent, _, names in os.walk(below) for name in names)

    def _created(self, path: Path) -> Path:
        missing = [parent for parent in path.parents if not parent.exists()]
        for directory in reversed(missing):
            directory.mkdir(exist_ok=True)
            # A new directory's own name is part of the object's durability.
            fsync_directory(directory.parent)
        return path
