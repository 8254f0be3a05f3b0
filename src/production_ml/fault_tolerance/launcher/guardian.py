"""Outlives the launcher by a moment: when that is gone, kills the process groups that the workers lead.

The kernel kills a worker together with its launcher (worker_start), but not what the worker has started: the Python
process under a shell script, say. A launcher that was killed with SIGKILL cannot do it either, so a small process
reads from it which groups there are, and acts when there is nothing more to read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_logger = logging.getLogger("production_ml.fault_tolerance.launcher.guardian")


class Guardian:
    """The launcher's end: says which groups are to go with it."""

    def __init__(self) -> None:
        # -I and -S: a bare interpreter is there in a few milliseconds, and takes a few megabytes.
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            (sys.executable, "-I", "-S", str(Path(__file__))), stdin=subprocess.PIPE, start_new_session=True
        )

    def guard(self, groups: Iterable[int]) -> None:
        """These groups, and no others, are to be killed when the launcher is gone."""
        self._tell(" ".join(str(group) for group in groups) + "\n")

    def close(self) -> None:
        """The workers have ended; so may the guardian."""
        self._tell("\n")
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            _logger.warning("the launcher's guardian was killed: should the launcher be killed too, look for orphans")
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def main() -> None:
    """Read lines of group numbers until the launcher is gone; then kill the groups of the last line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[int] = []
    for line in sys.stdin:
        groups = [int(word) for word in line.split()]
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
