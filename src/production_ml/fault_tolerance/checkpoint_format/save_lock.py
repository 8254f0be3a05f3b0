"""The claim on an unfinished save: who holds it, and whether a save that nobody seems to hold may be called dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK

LOCK_FILE: Final = "save.lock"
SILENCE_SECONDS: Final = 24 * 3600.0
"""After so long without a write, no save is alive: the longest that a rank waits for another is half an hour."""


class SaveLock:
    """Held for rank 0 while a save is under way: the kernel lets go of it when its holder dies, however it dies."""

    descriptor: int | None

    def __init__(self, written: Path) -> None:
        descriptor = os.open(written / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        self.descriptor = descriptor
        # On a file system without locks no save can be told dead, and leftovers stay: better than losing a live one.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())

    @classmethod
    def adopt(cls, descriptor: int) -> SaveLock:
        """The lock that another process took and handed over."""
        lock = cls.__new__(cls)
        lock.descriptor = descriptor
        return lock

    def hand_over(self) -> None:
        """Another process has the descriptor now: the lock is held until that one lets go."""
        self._close()

    def release(self) -> None:
        """Let go. Unlocked on purpose, not by closing alone: a forked worker may hold a copy of the descriptor."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def is_held(written: Path) -> bool:
    """Whether a process that this host knows of holds the save in `written`, or it cannot be told."""
    try:
        descriptor = os.open(written / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_surely_held(written: Path) -> bool:
    """Whether a process that this host knows of holds the save in `written`; where it cannot be told, it does not."""
    try:
        descriptor = os.open(written / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def is_of_this_process(written: Path) -> bool:
    """Whether this very process took the claim on the save in `written`."""
    try:
        return (written / LOCK_FILE).read_text(errors="replace").split() == [socket.gethostname(), str(os.getpid())]
    except OSError:
        return False


def is_dead(written: Path) -> bool:
    """Whether no process works in `written` any more; a save that may be alive is not dead.

    Over NFS a lock may be known to the host alone that took it. So each judges its own saves by their locks, and those
    of others by their silence.
    """
    return not is_held(written) and (_is_own(written) or _is_silent(written))


def _is_own(written: Path) -> bool:
    try:
        holder = (written / LOCK_FILE).read_text(errors="replace")
    except OSError:
        return False
    return holder.split()[:1] == [socket.gethostname()]


def _is_silent(written: Path) -> bool:
    try:
        last_write = max(path.stat().st_mtime for path in (written, *written.iterdir()))
    except OSError:
        return False
    return SYSTEM_CLOCK.wall_seconds() - last_write > SILENCE_SECONDS
