"""Object stores with a fault of their own: a listing that is old, and requests that fail."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

from production_ml.storage.base import ObjectStore, StoredObject


class StaleListing:
    """A store whose listing does not show what was written lately, nor that something was deleted lately.

    Args:
        store: The store itself; all but its listing is as it is.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.address = store.address
        self.store = store
        self._seen: list[StoredObject] = []

    def refresh(self) -> None:
        """From now on, listings show what is there now."""
        self._seen = self.store.listing()

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        self.store.put(key, pieces)

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        return self.store.get(key, begin, end)

    def size(self, key: str) -> int:
        return self.store.size(key)

    def listing(self, folder: str = "") -> list[StoredObject]:
        return [found for found in self._seen if not folder or found.key.startswith(f"{folder}/")]

    def delete(self, keys: Iterable[str]) -> None:
        self.store.delete(keys)

    def clear_unfinished(self, before: float) -> int:
        return self.store.clear_unfinished(before)


class FailingStore:
    """A store that is told which requests fail, as when a network is gone for longer than anyone tries.

    Args:
        store: The store itself.
        fails: Given the verb and the key (for `listing`, the folder); where it is true, the request fails.
        after: Whether a `put` is carried out all the same, and only its answer is lost.
    """

    def __init__(self, store: ObjectStore, fails: Callable[[str, str], bool], *, after: bool = False) -> None:
        self.address = store.address
        self._store = store
        self._fails = fails
        self._after = after

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        if not self._after:
            self._check("put", key)
        self._store.put(key, pieces)
        if self._after:
            self._check("put", key)

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        self._check("get", key)
        return self._store.get(key, begin, end)

    def size(self, key: str) -> int:
        self._check("size", key)
        return self._store.size(key)

    def listing(self, folder: str = "") -> list[StoredObject]:
        self._check("listing", folder)
        return self._store.listing(folder)

    def delete(self, keys: Iterable[str]) -> None:
        doomed = list(keys)
        for key in doomed:
            self._check("delete", key)
        self._store.delete(doomed)

    def clear_unfinished(self, before: float) -> int:
        self._check("clear_unfinished", "")
        return self._store.clear_unfinished(before)

    def _check(self, verb: str, key: str) -> None:
        if self._fails(verb, key):
            raise OSError(errno.ETIMEDOUT, "Connection timed out", self.address)
