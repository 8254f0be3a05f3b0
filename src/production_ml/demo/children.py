"""The demo's child processes: each in a session of its own, all ended when the demo ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from production_ml.core.errors import ProductionMLError
from production_ml.monitoring.run_directory import RunDirectory

_GRACE_SECONDS = 15.0
_EXPORTER_GRACE_SECONDS = 10.0
_TAIL_LINES = 15


class StationError(ProductionMLError):
    """A station of the demo did not do what it is there for."""


def command_line(*arguments: str) -> list[str]:
    """`production-ml` with `arguments`, run by this very interpreter."""
    return [sys.executable, "-m", "production_ml.cli.main", *arguments]


@dataclass(frozen=True, slots=True)
class Child:
    """A process and the file that holds what it prints."""

    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def require_success(self) -> None:
        """Say why a process that has ended failed, if it did.

        Raises:
            StationError: Its exit status is not 0; the error holds its last lines.
        """
        if self.process.returncode != 0:
            raise StationError(
                f"A child process ended with {_status(self.process.returncode)}: {' '.join(self.command)}",
                meaning=last_lines(self.output),
                cure=f"All of its output is in {self.output}",
            )

    def end(self) -> None:
        """Ask the process to end, then insist, on it and on all of its session."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Children:
    """Starts processes and remembers them; leaving the `with` block ends those that still run.

    Ctrl-C reaches only the demo, since children have sessions of their own: the demo decides in which order they end.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second, impatient Ctrl-C must not leave half of them behind.
        with _interrupts_deferred():
            for child in reversed(self._started):
                child.end()

    def start(self, command: Sequence[str], output: Path) -> Child:
        """Start `command` in the demo's directory; what it prints goes to `output`."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # An interrupt between the fork and the note of it would leave a process that nobody ends.
        with _interrupts_deferred(), output.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own commands, run by our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._directory,
                env=environment,
                start_new_session=True,
            )
            child = Child(tuple(command), process, output)
            self._started.append(child)
        return child

    def run(self, command: Sequence[str], output: Path) -> str:
        """Run `command` to its end; returns all that it printed.

        Raises:
            StationError: It failed; the error ends with its last lines.
        """
        child = self.start(command, output)
        child.process.wait()
        child.require_success()
        return output.read_text()


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM within the block take effect after it."""
    arrived: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, lambda received, _: arrived.append(received))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt


def await_exporter(run: RunDirectory) -> None:
    """Wait until the exporter of a run that is over is gone, so that a demo leaves no process behind.

    Raises:
        StationError: It did not end.
    """
    path = run.exporter_lock(socket.gethostname())
    if not path.exists():
        return
    deadline = time.monotonic() + _EXPORTER_GRACE_SECONDS
    with path.open("rb") as lock:
        # An exporter holds this lock for as long as it lives; its end cannot be awaited otherwise: it is no child.
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise StationError(f"{run.path}: the exporter still runs, although the run is over.")
            time.sleep(0.05)


def last_lines(output: Path) -> str:
    """The end of what a process printed."""
    return "\n".join(output.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


def _try_lock(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _status(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
