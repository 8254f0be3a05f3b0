"""Appending to the run log: a record that was logged is in the kernel's hands, whatever happens to the process."""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import RunDirectoryError
from production_ml.monitoring.run_directory import DISK_IS_FULL
from production_ml.monitoring.run_log.append_only_file import AppendOnlyFile
from production_ml.monitoring.run_log.format import (
    FRAME,
    LARGEST_PAYLOAD_BYTES,
    MAGIC,
    EventRecord,
    NamesLayout,
    Source,
    encode_event,
    encode_source,
)

_REPEAT_BYTES = 1 << 20
_logger = logging.getLogger(__name__)


class RunLogWriter:
    """One process's file. Thread-safe; a forked child that writes gets a file of its own.

    SIGKILL loses no record for which `metrics` or `event` returned. (A power cut may: the log is not fsynced per
    record, since losing a node's last seconds of metrics costs less than a sync per step.) While the disk takes
    nothing, records wait in memory; they are written when there is room again.

    Args:
        name_file: Gives the path to write; asked again in a forked child.
        source: Who writes.
        clock: Where times come from.

    Raises:
        RunDirectoryError: The file cannot be made, for another reason than a full disk.
    """

    def __init__(self, name_file: Callable[[], Path], source: Source, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name_file = name_file
        self._source = source
        self._clock = clock
        # Reentrant: a signal handler may log an event while the code that it interrupts holds the lock.
        self._lock = threading.RLock()
        self._is_closed = False
        self._is_forked = False
        self._has_refused = False
        self._layouts: dict[tuple[str, ...], NamesLayout] = {}
        self._file = AppendOnlyFile(name_file())
        try:
            self._file.create()
        except OSError as problem:
            if problem.errno not in DISK_IS_FULL:
                raise RunDirectoryError(self.path, f"the run log cannot be written ({problem.strerror})") from problem
        self._begin()
        _writers.add(self)

    @property
    def path(self) -> Path:
        """The file as it is named now."""
        return self._file.path

    def metrics(self, step: int, names: tuple[str, ...], values: tuple[float, ...]) -> None:
        """Append the `values` of `names`, which are equally many, at `step`."""
        with self._lock:
            if not self._is_ready():
                return
            layout = self._layouts.get(names)
            if layout is None:
                layout = NamesLayout.of(names)
                if not self._append(layout.definition):
                    return
                self._layouts[names] = layout
            payload = layout.values.pack(b"M", layout.names_id, step, self._clock.wall_seconds(), *values)
            self._append(FRAME.pack(len(payload), zlib.crc32(payload)) + payload)

    def event(
        self, name: str, /, *, step: int | None = None, level: str = "info", message: str = "", **fields: Any
    ) -> None:
        """Append an event that happens now."""
        self.append(EventRecord(name, self._clock.wall_seconds(), step, level, message, fields))

    def append(self, event: EventRecord) -> None:
        """Append an event that has a time already."""
        with self._lock:
            if self._is_ready():
                self._append(encode_event(event))

    def close(self) -> None:
        """Write what waits, if it can be written, and close the file. What comes later is left out."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._file.close()

    def after_fork(self) -> None:
        """In a forked child, before it does anything: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
        self._is_forked = True

    def _is_ready(self) -> bool:
        if self._is_closed:  # not an error: another thread may log while this one closes
            _logger.debug("%s is closed; a record is left out.", self.path)
            return False
        if self._is_forked:
            self._is_forked = False
            self._source = replace(self._source, pid=os.getpid(), started_at=self._clock.wall_seconds())
            self._file.abandon()
            self._file = AppendOnlyFile(self._name_file())
            self._begin()
        elif self._file.written_bytes >= self._repeat_at_bytes:
            self._introduce()
        return True

    def _begin(self) -> None:
        self._append(MAGIC)
        self._introduce()

    def _introduce(self) -> None:
        # Said again now and then: whoever reads on after a damaged place needs to know the source and the names.
        self._repeat_at_bytes = self._file.written_bytes + _REPEAT_BYTES
        self._layouts.clear()
        self._append(encode_source(self._source))

    def _append(self, record: bytes) -> bool:
        if len(record) > LARGEST_PAYLOAD_BYTES:
            self._refuse(len(record))
            return False
        if not self._file.append(record):
            self._repeat_at_bytes = 0  # what is lost may be the source, or names
            return False
        return True

    def _refuse(self, size_bytes: int) -> None:
        if not self._has_refused:
            self._has_refused = True
            text = "%s: a record of %d bytes is left out, and so are later ones of more than %d. Log less at once."
            _logger.warning(text, self.path, size_bytes, LARGEST_PAYLOAD_BYTES)


_writers: WeakSet[RunLogWriter] = WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
