"""Appending to the run log: one write() per record, which the kernel keeps whatever happens to the process."""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.monitoring.run_log.format import (
    FRAME,
    MAGIC,
    METRICS_HEAD,
    EventRecord,
    Source,
    encode_event,
    encode_names,
    encode_source,
)

_BACKLOG_FRAMES = 100_000
_logger = logging.getLogger(__name__)


class RunLogWriter:
    """One process's file. Thread-safe; a forked child writes a file of its own.

    A record is in the kernel's hands when `metrics` or `event` returns: SIGKILL loses none. (A power cut may: the
    log is not fsynced per record, since losing a node's last seconds of metrics costs less than a sync per step.)
    When the disk is full, records wait in memory and are written when there is room again.

    Args:
        name_file: Gives the path to write; asked again in a forked child.
        source: Who writes.
        clock: Where times come from.
    """

    def __init__(self, name_file: Callable[[], Path], source: Source, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name_file = name_file
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._dropped = 0
        self._open(source)

    @property
    def path(self) -> Path:
        return self._path

    def metrics(self, step: int, names: tuple[str, ...], values: tuple[float, ...]) -> None:
        """Append the `values` of `names`, which are equally many, at `step`."""
        self._after_fork()
        with self._lock:
            known = self._names.get(names)
            if known is None:
                known = self._define(names)
            names_id, layout = known
            head = METRICS_HEAD.pack(b"M", names_id, step, self._clock.wall_seconds())
            payload = head + layout.pack(*values)
            self._append(FRAME.pack(len(payload), zlib.crc32(payload)) + payload)

    def event(
        self, name: str, *, step: int | None = None, level: str = "info", message: str = "", **fields: Any
    ) -> None:
        """Append an event."""
        record = EventRecord(name, self._clock.wall_seconds(), step, level, message, fields)
        self._after_fork()
        with self._lock:
            self._append(encode_event(record))

    def close(self) -> None:
        """Write what waits, if it can be written, and close the file."""
        with self._lock:
            if self._descriptor < 0:
                return
            if self._backlog:
                self._flush_backlog()
            if self._backlog:
                _logger.error(
                    "%s: %d records could not be written before the run closed (disk full?) and are lost.",
                    self._path,
                    len(self._backlog),
                )
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, source: Source) -> None:
        self._pid = os.getpid()
        self._path = self._name_file()
        self._backlog: deque[bytes] = deque()
        self._names: dict[tuple[str, ...], tuple[int, struct.Struct]] = {}
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._written_bytes = os.fstat(self._descriptor).st_size
        beginning = b"" if self._written_bytes else MAGIC
        self._append(beginning + encode_source(source))

    def _after_fork(self) -> None:
        # A forked child (a DataLoader worker, say) shares the descriptor; its names would clash with its parent's.
        # The lock is new as well: another thread may have held it when the process forked.
        if os.getpid() != self._pid:
            self._lock = threading.Lock()
            self._open(replace(self._source, pid=os.getpid()))

    def _define(self, names: tuple[str, ...]) -> tuple[int, struct.Struct]:
        defined = (len(self._names), struct.Struct(f"<{len(names)}d"))
        self._append(encode_names(defined[0], names))
        self._names[names] = defined
        return defined

    def _append(self, data: bytes) -> None:
        if self._backlog or not self._write(data):
            self._backlog.append(data)
            self._flush_backlog()

    def _flush_backlog(self) -> None:
        while self._backlog and self._write(self._backlog[0]):
            self._backlog.popleft()
        # The first frames hold the source and the names; without them the rest cannot be read, so new ones are dropped.
        while len(self._backlog) > _BACKLOG_FRAMES:
            self._backlog.pop()
            self._dropped += 1

    def _write(self, data: bytes) -> bool:
        try:
            count = os.write(self._descriptor, data)
        except OSError as problem:
            self._complain(problem.strerror)
            return False
        if count == len(data):
            self._written_bytes += count
            return True
        # Half a record would hide every later one from a reader.
        os.ftruncate(self._descriptor, self._written_bytes)
        self._complain("only part of a record fitted on the disk")
        return False

    def _complain(self, problem: str) -> None:
        if not self._backlog:
            _logger.warning(
                "%s: the run log cannot be written (%s). Training goes on; up to %d records wait in memory "
                "and are written when there is room. Free space on that disk.",
                self._path,
                problem,
                _BACKLOG_FRAMES,
            )
