"""Becomes a worker: asks the kernel to kill this process with its launcher, then turns into the worker's command.

It is run as a file, by a bare interpreter, so it imports nothing of the library: every millisecond here is part of a
restart. A preexec function would save the extra interpreter, but forks a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_COMMAND_NOT_FOUND = 127
_COMMAND_NOT_RUNNABLE = 126


def main() -> None:
    """Run `LAUNCHER_PID COMMAND ...` in place of this process."""
    launcher, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(launcher):
        sys.exit(f"the launcher {launcher} is gone; this worker does not start")
    # Python ignores these two, and what is ignored stays so over exec: a worker's `yes | head` would never end.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command, without a shell
    except OSError as problem:
        sys.stderr.write(f"{command[0]}: cannot be run ({problem.strerror})\n")
        sys.exit(_COMMAND_NOT_FOUND if isinstance(problem, FileNotFoundError) else _COMMAND_NOT_RUNNABLE)


if __name__ == "__main__":
    main()
