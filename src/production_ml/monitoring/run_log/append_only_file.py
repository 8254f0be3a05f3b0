"""A file that takes whole records or none, and keeps them in memory while the disk has no room."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from pathlib import Path

_BACKLOG_RECORDS = 100_000
_RECORDS_PER_FLUSH = 256
_logger = logging.getLogger(__name__)


class AppendOnlyFile:
    """Appends with one write() per record. A failing disk is warned of once, waited for, and never raised.

    Not thread-safe: its owner holds a lock.

    Args:
        path: The file to make; where it exists, a number is put into the name, so that no two writers share a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written_bytes = 0
        self._descriptor = -1
        self._backlog: deque[bytes] = deque()
        self._dropped = 0
        self._is_failing = False

    def create(self) -> None:
        """Make the file now instead of with the first record, to learn of a directory that cannot be written.

        Raises:
            OSError: It cannot be made.
        """
        wished = self.path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        for number in itertools.count(2):
            try:
                self._descriptor = os.open(self.path, flags, 0o644)
            except FileExistsError:
                self.path = wished.with_name(f"{wished.stem}.{number}{wished.suffix}")
            else:
                return

    def append(self, record: bytes) -> bool:
        """Write `record`, or keep it until it can be written.

        Returns:
            False where it is lost, since too many wait already.
        """
        if self._backlog:
            self._flush()
        if not self._backlog and self._write(record):
            return True
        if len(self._backlog) >= _BACKLOG_RECORDS:
            # The newest go: the first ones say who writes and what the values mean.
            self._dropped += 1
            return False
        self._backlog.append(record)
        return True

    def close(self) -> None:
        """Write what waits, if that is possible, and close the file."""
        while self._backlog and self._flush():
            pass
        if self._backlog:
            _logger.error("%s: %d records never found room on the disk; they are lost.", self.path, len(self._backlog))
        self.abandon()

    def abandon(self) -> None:
        """Close the file and forget what waits: in a forked child, both are the parent's."""
        self._backlog.clear()
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # NFS reports here what it could not store
                os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> bool:
        # A few at a time, so that no single call to log() pays for a whole outage.
        for _ in range(min(_RECORDS_PER_FLUSH, len(self._backlog))):
            if not self._write(self._backlog[0]):
                return False
            self._backlog.popleft()
        return True

    def _write(self, record: bytes) -> bool:
        try:
            if self._descriptor < 0:
                self.create()
            count = os.write(self._descriptor, record)
        except OSError as problem:
            self._complain(problem.strerror or str(problem))
            return False
        if count < len(record):
            with contextlib.suppress(OSError):  # half a record can be passed over by a reader, but costs it a warning
                os.ftruncate(self._descriptor, self.written_bytes)
            self._complain("only part of a record found room on the disk")
            return False
        self.written_bytes += count
        if self._is_failing:
            self._report_recovery()
        return True

    def _complain(self, problem: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            _logger.warning(
                "%s cannot be written (%s). Training goes on; up to %d records wait in memory and are written when "
                "there is room. Free space on that disk.",
                self.path,
                problem,
                _BACKLOG_RECORDS,
            )

    def _report_recovery(self) -> None:
        self._is_failing = False
        lost = f"{self._dropped} records that came while too many waited are lost" if self._dropped else "none is lost"
        self._dropped = 0
        _logger.warning("%s can be written again; %s.", self.path, lost)
