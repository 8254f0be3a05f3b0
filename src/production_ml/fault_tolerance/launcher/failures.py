"""Why a worker ended: its exit code, its signal, and the error it left behind, in words."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHELL_SIGNAL_BASE = 128
_TRACEBACK = "Traceback (most recent call last):"
_UNCAUGHT_EXCEPTION = 1
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")
"""What torch.distributed puts before each line of an uncaught exception's traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFailure:
    """One worker that ended otherwise than with exit code 0, and was not stopped by the launcher."""

    attempt: int
    rank: int
    local_rank: int
    pid: int
    exit_code: int
    """As the operating system gives it; minus the signal's number where a signal killed the worker."""
    signal: str | None
    reason: str
    """One line."""
    traceback: str | None
    stderr_tail: tuple[str, ...] = ()


def signal_name(exit_code: int) -> str | None:
    """The signal that an exit code tells of, `SIGKILL` for -9 and for a shell's 137; None for any other code."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNAL_BASE
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have no name of their own.
        return f"signal {number}" if exit_code < 0 else None


def explain(exit_code: int, *, error_file: Path, stderr: Sequence[str]) -> tuple[str, str | None]:
    """The reason in one line, and the traceback if one is known.

    A script that torchelastic's `record` decorates writes an error file; any other Python script leaves its traceback
    at the end of stderr.
    """
    recorded = read_error_file(error_file)
    if recorded is not None:
        return recorded
    if exit_code == _UNCAUGHT_EXCEPTION and (printed := last_traceback(stderr)) is not None:
        return printed
    name = signal_name(exit_code)
    return (f"killed by {name}" if name else f"exit code {exit_code}"), None


def read_error_file(path: Path) -> tuple[str, str | None] | None:
    """The message and traceback that a worker recorded; None where there is no file, or only part of one."""
    try:
        message = json.loads(path.read_text())["message"]
        if isinstance(message, str):
            return message, None
        return str(message["message"]), message.get("extraInfo", {}).get("py_callstack")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def last_traceback(lines: Sequence[str]) -> tuple[str, str] | None:
    """The exception's line and the whole of the last traceback that was printed."""
    plain = [_RANK_PREFIX.sub("", line) for line in lines]
    starts = [index for index, line in enumerate(plain) if line.strip() == _TRACEBACK]
    if not starts:
        return None
    after = plain[starts[-1] + 1 :]
    for length, line in enumerate(after, start=1):
        if line and not line[0].isspace():
            return line, "\n".join([_TRACEBACK, *after[:length]])
    return None


def root_cause_first(failures: Iterable[WorkerFailure]) -> list[WorkerFailure]:
    """Failures seen in one look, the likeliest cause first.

    A worker killed by a signal did not fail because another one was gone; one that raised may have: its peers see
    closed connections within a millisecond. SIGABRT is such a consequence too, for NCCL's watchdog aborts.
    """
    return sorted(failures, key=lambda failure: (failure.signal in (None, "SIGABRT", "SIGTERM"), failure.rank))


def advice(failure: WorkerFailure) -> str:
    """What to look at for a failure of this kind."""
    if failure.reason.startswith("hung for "):
        return f"Look at the stacks of all ranks, rank-*.stacks.txt; rank {failure.rank} {failure.reason}."
    if failure.signal == "SIGKILL":
        return "SIGKILL that nobody sent comes from the kernel's out-of-memory killer: see `dmesg | grep -i oom`."
    if failure.signal in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"):
        return "The crash is in native code: run with PYTHONFAULTHANDLER=1 to see the Python line."
    if failure.signal in ("SIGTERM", "SIGINT", "SIGHUP"):
        return f"Something outside of the job sent {failure.signal}: a scheduler's time limit, or a person."
    if failure.exit_code == 127:
        return "The command was not found: check its name, and PATH."
    return "Mend the cause in the script."
