"""The lease of a reader: a checkpoint that is being read is not pruned, whoever reads it.

It is a lock on the manifest: a shared one for each reader, an exclusive one for who removes. The kernel lets go of it
when the process dies, however it dies, and a reader needs no right to write. Over NFS the lock is the server's, so it
holds across hosts unless the mount says `nolock` or `local_lock`; Lustre wants `-o flock`. Where a file system has no
locks, reading and pruning work as if there were no leases: a reader then finds its checkpoint gone, and lists again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from production_ml.fault_tolerance.checkpoint_format.manifest import MANIFEST_FILE
from production_ml.fault_tolerance.checkpoint_format.regular_file import open_regular

_TRIES: Final = 3
"""A name that was taken over by a newer save each time we looked is not looked at for ever."""
_NOT_FOR_WRITING: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def read_lease(checkpoint: Path) -> Iterator[bool]:
    """Keep `checkpoint` from being pruned within it. Never raises and hardly ever waits.

    Yields:
        Whether the lease is held. If not, the checkpoint is gone, or its file system has no locks: read it as one that
        may vanish.
    """
    descriptor = _leased(checkpoint / MANIFEST_FILE)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor)


@contextlib.contextmanager
def removal_claim(checkpoint: Path) -> Iterator[bool]:
    """Keep readers from beginning within it; it is to last for a rename and no longer, because they wait for its end.

    Yields:
        Whether the checkpoint may be removed: nobody reads it, as far as its file system can tell.
    """
    try:
        descriptor = _open_for_claim(checkpoint / MANIFEST_FILE)
    except OSError:  # a manifest that cannot be opened has no readers either
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) is not False
    finally:
        _release(descriptor)


def is_being_read(checkpoint: Path) -> bool:
    """Whether a reader holds a lease now."""
    with removal_claim(checkpoint) as is_free:
        return not is_free


def _leased(manifest: Path) -> int | None:
    for _ in range(_TRIES):
        try:
            descriptor = open_regular(manifest)
        except OSError:
            return None
        if _lock(descriptor, fcntl.LOCK_SH) and _is_still(manifest, descriptor):
            return descriptor
        # Between the opening and the lock it was removed, or a newer save took its name.
        _release(descriptor)
    return None


def _open_for_claim(manifest: Path) -> int:
    try:
        return os.open(manifest, os.O_RDWR | os.O_CLOEXEC)  # over NFS an exclusive lock takes the right to write
    except OSError as problem:
        if problem.errno not in _NOT_FOR_WRITING:
            raise
        return os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)


def _lock(descriptor: int, kind: int) -> bool | None:
    """Whether the lock was taken; None where it cannot be told, because there are no locks."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _release(descriptor: int) -> None:
    """Let go. Unlocked on purpose, not by closing alone: a forked worker may hold a copy of the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
