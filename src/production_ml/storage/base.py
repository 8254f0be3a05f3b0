"""What an object store must do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from production_ml.core.errors import ConfigError

_KEY: Final = re.compile(r"[A-Za-z0-9_.=@-]+(?:/[A-Za-z0-9_.=@-]+)*")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A line of a listing."""

    key: str
    size_bytes: int
    modified_at: float | None
    """Wall seconds by the store's clock; None where it does not tell."""


class ObjectStore(Protocol):
    """Whole objects under keys such as `step-00000300/manifest.json`: what S3, Google's, Azure's and a directory share.

    There is no rename, no append, no lock and no directory, because object stores have none, and what imitates them
    (a copy and a deletion) is neither atomic nor cheap. Two promises are enough to commit by a manifest written last:
    an object is there as a whole or not at all, and when `put` returns it is durable and `get` finds it. A listing
    promises less: some stores show for a while what was, so nobody may conclude from it alone that something is gone.

    Every verb tries again, with growing pauses, what a network or a busy server may have caused; so a caller needs no
    retry of its own. What fails in the end is an `OSError`: `FileNotFoundError`, `PermissionError`, or another by its
    `errno` (never `EIO`, which tells of lost bytes). It holds no credentials. Several threads may call at once.

    A kind is made from its URL. Credentials come from the environment and the tools' own configuration.
    """

    address: str
    """The URL, for messages; without secrets."""

    def __init__(self, url: str) -> None: ...

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Store the pieces one after another as one object; replaces what was there, at once or not at all."""
        ...

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        """The bytes from `begin` up to `end`; fewer where the object ends before. Without both, of one version."""
        ...

    def size(self, key: str) -> int:
        """Bytes of the object."""
        ...

    def listing(self, folder: str = "") -> list[StoredObject]:
        """All objects whose keys begin with `folder` and a slash, or all there are; sorted by key."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete them; those that are not there are passed over."""
        ...

    def clear_unfinished(self, before: float) -> int:
        """Drop what killed processes had begun to `put` before that time (wall seconds), and say how many.

        No listing shows it, but it takes room and costs money.
        """
        ...


def check_key(key: str) -> str:
    """`key` itself, where every kind can take it.

    Raises:
        ConfigError: It could leave the store (`../x`), or a store may read it as another key.
    """
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise ConfigError("key", key, "must be names of letters, digits and '_.=@-', with single slashes between them")
    return key
