"""Children that are forked from a process which has imported everything: a fresh trainer costs 20 ms, not seconds."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from .syscall_gate import Gate, stand_behind_gate

Tell = Callable[..., None]
"""Sends a message, of anything that JSON has, to the parent; a kill afterwards cannot take it back."""


def adopt_orphans() -> None:
    """Let what a killed child leaves behind become this process's own child, so that it can be found and ended."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


class Child:
    """A forked process.

    Args:
        body: What it does; its exceptions end up in `log`.
        log: Where its output goes.
        gated: The system calls that wait for `gate`; none means no gate.
        directory: Which the gate watches.
    """

    def __init__(
        self,
        body: Callable[[Tell], None],
        *,
        log: Path,
        gated: frozenset[str] = frozenset(),
        directory: Path | None = None,
    ) -> None:
        self.log = log
        self._heard, told = os.pipe()
        os.set_blocking(self._heard, False)
        self._text = b""
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._heard)
            ours.close()
            _live(body, told, theirs, log, gated)
        os.close(told)
        theirs.close()
        self.gate: Gate | None = None
        with ours:
            if gated and directory is not None:
                _, descriptors, _, _ = socket.recv_fds(ours, 4, 1)
                if not descriptors:
                    raise OSError(f"no gate: {log.read_text()}")
                self.gate = Gate(descriptors[0], directory)

    def kill(self) -> None:
        """SIGKILL it, and return when it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def ended(self, *, timeout_seconds: float, beside: Child | None = None) -> tuple[list[Any], int | None]:
        """Its messages and its exit status; where it does not end in time it is killed and the status is None.

        Whatever else this process's children have left running is ended, too, but for the child `beside` this one.
        """
        status = self._wait(timeout_seconds)
        end_descendants(beside)
        if self.gate is not None:
            self.gate.close()
        messages = self.heard_so_far()
        os.close(self._heard)
        return messages, status

    def _wait(self, timeout_seconds: float) -> int | None:
        descriptor = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        is_over = bool(poll.poll(timeout_seconds * 1000))
        os.close(descriptor)
        if not is_over:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status) if is_over else None

    def heard_so_far(self) -> list[Any]:
        """All messages that have come until now."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._heard, 65536):
                self._text += piece
        return [json.loads(line) for line in self._text.splitlines()]


def end_descendants(spared: Child | None = None) -> None:
    """Kill whatever this process's children left running."""
    living = psutil.Process().children()
    left = [child for child in living if spared is None or child.pid != spared.pid]
    left += [process for child in left for process in child.children(recursive=True)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _live(body: Callable[[Tell], None], told: int, channel: socket.socket, log: Path, gated: frozenset[str]) -> None:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if gated:
            stand_behind_gate(gated, channel)
        channel.close()

        def tell(*message: Any) -> None:
            os.write(told, json.dumps(message).encode() + b"\n")

        body(tell)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
