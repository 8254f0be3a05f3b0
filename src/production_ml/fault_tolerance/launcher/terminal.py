"""The launcher's own stdout and stderr, written in a thread: a terminal that nobody reads holds up nothing else."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time

_PATIENCE_SECONDS = 1.0
"""A terminal that takes nothing for so long counts as not read."""
_STDERR = 2
_PIECES = 16
_LOOK_SECONDS = 0.05


class Terminal(threading.Thread):
    """Writes pieces in their order. A write that never returns cannot be called back, so its thread is left to it."""

    def __init__(self) -> None:
        super().__init__(name="terminal", daemon=True)
        self._pieces: queue.Queue[tuple[int, bytes] | None] = queue.Queue(_PIECES)
        self._moved_at = time.monotonic()
        self._is_hurried = False
        self._is_left = False
        self._has_dropped = False

    def show(self, descriptor: int, data: bytes) -> None:
        """Wait while the terminal is far behind, as a print into it would; drop `data` where it is not read."""
        if self.ident is None:
            self.start()
        self._put((descriptor, data))

    def hurry(self) -> None:
        """From now on nobody waits for a terminal that is not read."""
        if not self._is_hurried:
            self._moved_at = time.monotonic()
            self._is_hurried = True

    def close(self) -> bool:
        """Whether all was written."""
        self.hurry()
        if self.ident is None:
            return True
        self._put(None)
        while self.is_alive() and self._may_wait():
            self.join(_LOOK_SECONDS)
        self._is_left = self.is_alive()
        return not (self._is_left or self._has_dropped)

    def run(self) -> None:
        """Write until closed."""
        gone: set[int] = set()
        while not self._is_left and (piece := self._pieces.get()) is not None:
            descriptor, data = piece
            if descriptor in gone:
                continue
            try:
                write_all(descriptor, data)
            except OSError:  # the terminal is gone, or the reader of a pipe: training goes on
                gone.add(descriptor)
            self._moved_at = time.monotonic()

    def _put(self, piece: tuple[int, bytes] | None) -> None:
        while True:
            try:
                self._pieces.put(piece, timeout=_LOOK_SECONDS)
            except queue.Full:
                if self._may_wait():
                    continue
                self._has_dropped = True
                return
            self._moved_at = time.monotonic()
            return

    def _may_wait(self) -> bool:
        return not self._is_hurried or time.monotonic() - self._moved_at < _PATIENCE_SECONDS


def say_on_stderr(line: str) -> None:
    """Tell the person at the terminal; one who has closed it, or does not read it, does not hold up the launcher."""
    poller = select.poll()
    poller.register(_STDERR, select.POLLOUT)
    if poller.poll(_PATIENCE_SECONDS * 1000):
        with contextlib.suppress(OSError):
            # A pipe that is ready takes this much without waiting.
            os.write(_STDERR, f"launch: {line}\n".encode(errors="replace")[: select.PIPE_BUF])


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data` whole, though a single write may take less.

    Raises:
        OSError: The disk is full, or the reader has gone.
    """
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares the terminal with us has made it non-blocking
            select.select([], [descriptor], [])
