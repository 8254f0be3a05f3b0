"""The worker processes of one attempt: started together, watched without polling, and none left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from production_ml.fault_tolerance.launcher.output import OutputRelay

_START = Path(__file__).with_name("worker_start.py")
_KILLED_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.02
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerCommand:
    """What one worker runs, and where its output is kept."""

    local_rank: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    stdout: Path
    stderr: Path


class WorkerProcesses:
    """The workers that one launcher runs in one attempt; each leads a process group of its own.

    A worker's group is killed before the worker is reaped: until then its number cannot belong to anyone else.

    Args:
        commands: One per worker.
        output: Takes what they print.
        guard: Told which process groups are alive, whenever that changes.

    Raises:
        OSError: A process could not be started; those that were are stopped again.
    """

    def __init__(
        self,
        commands: Sequence[WorkerCommand],
        output: OutputRelay,
        guard: Callable[[Iterable[int]], None] = lambda _groups: None,
    ) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._exit_codes: dict[int, int] = {}
        self._watched: dict[int, int] = {}
        self._poller = select.poll()
        self.output = output
        self._guard = guard
        try:
            for command in commands:
                self._start(command)
        except OSError:
            self.stop(signal.SIGKILL, grace_seconds=0)
            raise
        self.pids = {local_rank: process.pid for local_rank, process in self._running.items()}
        output.start()

    def wait_for_exit(self, timeout_seconds: float) -> None:
        """Return as soon as a running worker has ended, or when the time is over."""
        if len(self._watched) == len(self._running):
            self._poller.poll(timeout_seconds * 1000)
            return
        deadline = time.monotonic() + timeout_seconds
        while not any(_has_ended(process.pid) for process in self._running.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL_SECONDS))

    def exit_codes(self) -> dict[int, int]:
        """The exit code of every worker that has ended, by local rank; minus the signal's number for a killed one."""
        for local_rank, process in list(self._running.items()):
            if _has_ended(process.pid):
                self._reap(local_rank, process)
        return dict(self._exit_codes)

    def stop(
        self, how: signal.Signals, *, grace_seconds: float, is_hurried: Callable[[], bool] = lambda: False
    ) -> None:
        """Signal all that run, and kill what is still there after `grace_seconds`, or at once when hurried."""
        self._signal_all(how)
        self._wait_for_all(grace_seconds, is_hurried)
        self._signal_all(signal.SIGKILL)
        self._wait_for_all(_KILLED_WAIT_SECONDS)
        for process in self._running.values():
            _logger.error(
                "worker %d does not end after SIGKILL; it hangs in the kernel (a device or network file system?) "
                "and is left to it. This machine may need a restart.",
                process.pid,
            )
        for descriptor in self._watched.values():
            os.close(descriptor)
        self._watched.clear()
        self.output.close()

    def _start(self, command: WorkerCommand) -> None:
        # -I and -S: the first interpreter only execs, and must not be slowed or misled by the worker's environment.
        starter = (sys.executable, "-I", "-S", str(_START), str(os.getpid()))
        streams = self.output.open(command.local_rank, command.stdout, command.stderr)
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command, without a shell
                (*starter, *command.arguments),
                env=dict(command.environment),
                stdout=streams.stdout,
                stderr=streams.stderr,
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which ends the workers
            )
        finally:
            streams.close()
        self._running[command.local_rank] = process
        self._tell_guard()
        with contextlib.suppress(OSError):  # no pidfd in this kernel or sandbox: polled instead
            descriptor = os.pidfd_open(process.pid)
            self._watched[command.local_rank] = descriptor
            self._poller.register(descriptor, select.POLLIN)

    def _wait_for_all(self, seconds: float, is_hurried: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        self.exit_codes()
        while self._running and not is_hurried() and (left := deadline - time.monotonic()) > 0:
            self.wait_for_exit(min(left, 0.1))
            self.exit_codes()

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._running.values():
            _signal_group(process.pid, number)

    def _tell_guard(self) -> None:
        self._guard(process.pid for process in self._running.values())

    def _reap(self, local_rank: int, process: subprocess.Popen[bytes]) -> None:
        if not _has_succeeded(process.pid):
            _signal_group(process.pid, signal.SIGKILL)
        self._exit_codes[local_rank] = process.wait()
        del self._running[local_rank]
        self._tell_guard()
        descriptor = self._watched.pop(local_rank, None)
        if descriptor is not None:
            self._poller.unregister(descriptor)
            os.close(descriptor)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _has_succeeded(pid: int) -> bool:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return status is not None and status.si_code == os.CLD_EXITED and status.si_status == 0


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
