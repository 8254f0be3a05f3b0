"""Object stores by fsspec: Google's, Azure's, memory, and whatever else it has a file system for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import fsspec

from production_ml.core.errors import ConfigError, MissingDependencyError
from production_ml.core.retry import Retry, RetryPolicy
from production_ml.storage.base import StoredObject, check_key
from production_ml.storage.store_errors import is_transient, translate

Result = TypeVar("Result")

# What each file system calls the time of an object.
_MODIFIED: Final = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
_PACKAGES: Final = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "abfs": ("adlfs", "azure")}


class FsspecStore:
    """Objects below a URL that fsspec knows.

    Args:
        url: Such as `gs://bucket/runs/exp-001`.
        retry_policy: How often and for how long each request is tried.

    Raises:
        ConfigError: fsspec knows no such URLs.
        MissingDependencyError: The package behind it is not installed.
    """

    def __init__(self, url: str, *, retry_policy: RetryPolicy | None = None) -> None:
        self.address = url.rstrip("/")
        protocol, _, path = self.address.partition("://")
        self._root = path.strip("/")
        self._file_system = open_file_system(protocol)
        self._retry = Retry(retry_policy or RetryPolicy(), is_transient=is_transient)

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        path = self._path(key)
        # Whole, though it takes the memory of a copy: a file of fsspec that is closed after an error is an object.
        data = b"".join(pieces)
        self._try(f"put {key}", lambda: self._file_system.pipe_file(path, data))

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        path = self._path(key)
        whole = begin == 0 and end is None
        limits = {} if whole else {"start": begin, "end": end}
        return bytes(self._try(f"get {key}", lambda: self._file_system.cat_file(path, **limits)))

    def size(self, key: str) -> int:
        path = self._path(key)

        def ask() -> int:
            self._file_system.invalidate_cache()
            return int(self._file_system.info(path)["size"])

        return self._try(f"size of {key}", ask)

    def listing(self, folder: str = "") -> list[StoredObject]:
        below = self._path(folder) if folder else self._root

        def ask() -> dict[str, dict[str, Any]]:
            # fsspec remembers listings; what another host has written since would not be in them.
            self._file_system.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._file_system.find(below, detail=True)
            return found

        listed = []
        for name, info in self._try(f"list {folder}", ask).items():
            key = self._key(name)
            if key is not None and (not folder or key.startswith(f"{folder}/")):
                listed.append(StoredObject(key, int(info["size"]), _modified_at(info)))
        return sorted(listed, key=lambda found: found.key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._delete(self._path(key))

    def clear_unfinished(self, before: float) -> int:  # noqa: ARG002 - nothing to look for
        """Stores that fsspec reaches drop unfinished uploads themselves (Google's and Azure's after a week)."""
        return 0

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._try(f"delete {path}", lambda: self._file_system.rm_file(path))

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _key(self, name: str) -> str | None:
        key = name.strip("/").removeprefix(f"{self._root}/")
        return None if key == name.strip("/") else key

    def _try(self, what: str, ask: Callable[[], Result], retry: Retry | None = None) -> Result:
        """Ask the store, in the words and with the errors of `ObjectStore`."""

        def attempt() -> Result:
            try:
                return ask()
            except Exception as problem:
                translated = translate(problem, self.address)
                if translated is None:
                    raise
                raise translated from problem

        return (retry or self._retry).call(f"{what} at {self.address}", attempt)


def open_file_system(protocol: str, **options: Any) -> Any:
    """The file system that fsspec has for `protocol`, not shared with other users of fsspec in this process.

    Raises:
        ConfigError: fsspec knows no such protocol.
        MissingDependencyError: The package behind it is not installed.
    """
    options = {"use_listings_cache": False, "skip_instance_cache": True, **options}
    try:
        return fsspec.filesystem(protocol, **options)
    except ImportError as missing:
        package, extra = _PACKAGES.get(protocol, (getattr(missing.__cause__, "name", None) or protocol, "all"))
        raise MissingDependencyError(package, extra=extra, purpose=f"A store at {protocol}://") from missing
    except ValueError as unknown:
        raise ConfigError("url", f"{protocol}://", "no file system of fsspec has this protocol") from unknown


def _modified_at(info: dict[str, Any]) -> float | None:
    for name in _MODIFIED:
        moment = info.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
        if isinstance(moment, str):
            return datetime.fromisoformat(moment).timestamp()
    return None
