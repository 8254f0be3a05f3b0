"""Signals to the launcher: the first asks for an orderly end, at a moment that suits; another one hurries it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Raise = Callable[[signal.Signals], Exception]


class Interruption:
    """What the launcher was told to do by signals.

    An exception from a signal handler may hit between the start of a worker and the line that notes its number. So a
    handler raises only where the code waits, under `raising`; elsewhere the signal is kept for the next wait.

    Args:
        exception: Makes the exception to raise.
    """

    def __init__(self, exception: Raise) -> None:
        self.received: signal.Signals | None = None
        self.is_hurried = False
        self._exception = exception
        self._may_raise = False
        self._has_raised = False

    @contextmanager
    def installed(self, signals: Sequence[signal.Signals]) -> Iterator[None]:
        """Handle `signals` within the block; a SIGHUP that is ignored, as under nohup, stays ignored.

        Only the main thread can handle signals; in another one this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in signals}
        handled = [number for number in signals if (number, former[number]) != (signal.SIGHUP, signal.SIG_IGN)]
        for number in handled:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number in handled:
                signal.signal(number, former[number])

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let signals raise within the block, one that came before it at once."""
        self._may_raise = True
        try:
            self._raise_if_due()
            yield
        finally:
            self._may_raise = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            self.is_hurried = True
            return
        self.received = signal.Signals(number)
        if self._may_raise:
            self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self.received is not None and not self._has_raised:
            self._has_raised = True
            raise self._exception(self.received)
