"""Work beside the training: done once and awaited to its end, whatever interrupts its start or the wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

_LOG: Final = logging.getLogger(__name__)


class Background:
    """One piece of work for a thread of its own.

    A Ctrl-C that comes amid `Thread.start()` leaves it unknown whether the thread will run, and one amid
    `Thread.join()` makes Python < 3.13 take the thread for ended. In a notebook training goes on after both, and would
    then share what the work uses. So whoever comes first takes the work, and its end is told by the work itself.

    Args:
        work: What to do.
        name: The thread's.
        daemon: Whether the process may end amid it.
    """

    def __init__(self, work: Callable[[], object], *, name: str, daemon: bool = False) -> None:
        self._work = work
        self._name = name
        self._daemon = daemon
        self._taken = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is under way, nor ever will be."""
        return self._ended.is_set()

    def start(self) -> None:
        """Work in the thread; where none can be started, training waits for the work instead."""
        self._thread = threading.Thread(target=self.run, name=self._name, daemon=self._daemon)
        try:
            self._thread.start()
        except RuntimeError as problem:
            _LOG.warning("%s is done while training waits: %s", self._name, problem)
            self.run()
        except BaseException:
            # Interrupted. If the thread has come to life it has the work, and else it never will.
            self.run()
            raise

    def run(self) -> None:
        """Work here and now, unless another thread has the work."""
        if self._taken.acquire(blocking=False):
            try:
                self._work()
            finally:
                # Whoever gave the work and keeps this would else be in a circle, and stay until the next collection.
                del self._work
                self._ended.set()

    def call_off(self) -> bool:
        """Whether the work had not begun; it never will then."""
        is_called_off = self._taken.acquire(blocking=False)
        if is_called_off:
            self._ended.set()
        return is_called_off

    def join(self) -> None:
        """Return when the work has ended. It must have been started, run or called off."""
        self._ended.wait()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
