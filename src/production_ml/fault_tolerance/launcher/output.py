"""What the workers print: kept in a file per rank and attempt, and passed on to the terminal line by line.

The workers write into pipes, not into the files: a full disk then costs the launcher the rest of a log file, and never
a worker its life at a `print`.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from production_ml.fault_tolerance.launcher.terminal import Terminal, say_on_stderr, write_all

STDOUT = 1
STDERR = 2
_READ_BYTES = 1 << 16
_TAIL_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16
_QUIET_SECONDS = 0.1
_DRAIN_SECONDS = 0.5
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerStreams:
    """The ends of the pipes that a worker gets as its stdout and stderr."""

    stdout: int
    stderr: int

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)


class _Stream:
    """One pipe of one worker."""

    def __init__(self, descriptor: int, path: Path, to_terminal: Callable[[bytes], None]) -> None:
        self.descriptor = descriptor
        self.ended = threading.Event()
        self.tail = b""
        self._path = path
        self._file: int | None = None
        self._to_terminal = to_terminal
        self._unfinished = b""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            self._give_up_file(problem)

    def take(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        if self._file is not None:
            try:
                write_all(self._file, data)
            except OSError as problem:
                self._give_up_file(problem)
        self._unfinished += data
        # Whole lines only, so that two ranks do not write into each other's; \r ends one too, for progress bars.
        end = max(self._unfinished.rfind(b"\n"), self._unfinished.rfind(b"\r")) + 1
        if len(self._unfinished) > _LONGEST_LINE_BYTES:
            end = len(self._unfinished)
        self._show(end)

    def flush(self) -> None:
        """Show the beginning of a line too: a prompt, say."""
        self._show(len(self._unfinished))

    def close(self) -> None:
        self.flush()
        os.close(self.descriptor)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.ended.set()

    def _show(self, end: int) -> None:
        shown, self._unfinished = self._unfinished[:end], self._unfinished[end:]
        if shown:
            self._to_terminal(shown)

    def _give_up_file(self, problem: OSError) -> None:
        _logger.warning(
            "%s cannot be written (%s): what the worker prints from here on is not kept. Training goes on. "
            "Free space on that disk.",
            self._path,
            problem.strerror,
        )
        if self._file is not None:
            os.close(self._file)
            self._file = None


class OutputRelay(threading.Thread):
    """Carries the output of one attempt's workers, in a thread, until the workers have ended.

    Args:
        is_shown: Whether a stream (1 or 2) of a local rank goes to the terminal as well.
    """

    def __init__(self, is_shown: Callable[[int, int], bool] = lambda _rank, _stream: True) -> None:
        super().__init__(name="worker-output", daemon=True)
        self._is_shown = is_shown
        self._terminal = Terminal()
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake = os.pipe()
        os.set_blocking(self._wake_receiver, False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._closed = False

    def open(self, local_rank: int, stdout: Path, stderr: Path) -> WorkerStreams:
        """The pipes for a worker, whose content goes to the files named."""
        ends = []
        for number, path in ((STDOUT, stdout), (STDERR, stderr)):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            is_shown = self._is_shown(local_rank, number)
            stream = _Stream(reader, path, partial(self._terminal.show, number) if is_shown else _hide)
            self._streams[local_rank, number] = stream
            self._selector.register(reader, selectors.EVENT_READ, stream)
            ends.append(writer)
        return WorkerStreams(*ends)

    def stderr_tail(self, local_rank: int) -> list[str]:
        """The last lines on stderr of a worker that has ended."""
        stream = self._streams[local_rank, STDERR]
        stream.ended.wait(_DRAIN_SECONDS)  # short of it only where a process that left the group holds the pipe
        return stream.tail.decode(errors="replace").splitlines()

    def run(self) -> None:
        """Carry until every pipe is closed or `close` is called."""
        while any(not stream.ended.is_set() for stream in self._streams.values()):
            ready = self._selector.select(_QUIET_SECONDS)
            for key, _ in ready:
                if key.data is None:
                    return
                self._carry(key.data)
            if not ready:
                for stream in self._streams.values():
                    stream.flush()

    def close(self) -> None:
        """Carry what is there already, and close the pipes; a terminal that nobody reads is waited for only so long."""
        if self._closed:
            return
        self._closed = True
        self._terminal.hurry()
        os.write(self._wake, b"\0")
        if self.ident is not None:
            self.join()
        for stream in self._streams.values():
            if not stream.ended.is_set():
                while self._carry(stream):
                    pass
            if not stream.ended.is_set():
                self._end(stream)
        self._selector.close()
        os.close(self._wake)
        os.close(self._wake_receiver)
        if not self._terminal.close():
            say_on_stderr("the terminal is not read, so not all output was shown; the files in logs/ have all of it")

    def _carry(self, stream: _Stream) -> bool:
        """Move one piece; False where there is none."""
        try:
            data = os.read(stream.descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            stream.take(data)
        else:
            self._end(stream)
        return bool(data)

    def _end(self, stream: _Stream) -> None:
        self._selector.unregister(stream.descriptor)
        stream.close()


def _hide(_data: bytes) -> None:
    """For a stream that is kept in its file alone."""
