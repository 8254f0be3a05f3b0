"""A sink that remembers what it was given, and fails when a test wants it to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import SourcedRecord


class RecordingSink:
    """Keeps what was written in `records`; raises on as many first calls of `open` and `write` as it is told to.

    `closed` is set by `close`, for a test to wait on.
    """

    def __init__(self, *, open_failures: int = 0, write_failures: int = 0) -> None:
        self.records: list[SourcedRecord] = []
        self.closed = threading.Event()
        self.identity: RunIdentity | None = None
        self._open_failures = open_failures
        self._write_failures = write_failures

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:  # noqa: ARG002 - the Protocol's
        self._open_failures -= 1
        if self._open_failures >= 0:
            raise ConnectionError("the service is not up yet")
        self.identity = identity

    def write(self, records: Sequence[SourcedRecord]) -> None:
        self._write_failures -= 1
        if self._write_failures >= 0:
            raise ConnectionError("the service went away")
        self.records += records

    def close(self) -> None:
        self.closed.set()
