"""Structured logs: events with their facts, each one line of JSON that names the rank, the attempt and the step."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc

LIBRARY_LOGGER: Final = logging.getLogger("production_ml")
_EARLY_EVENTS_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as `log_event` was told."""

    name: str
    level: int
    """As in `logging`."""
    message: str
    fields: Mapping[str, Any]
    wall_seconds: float

    @property
    def level_name(self) -> str:
        """The level in lower case: `info`, `warning`, `error`."""
        return logging.getLevelName(self.level).lower()


EventReceiver = Callable[[Event], None]

_receivers: list[EventReceiver] = []
# A script may resume before it starts to monitor: the first events wait for a receiver.
_early: deque[Event] = deque(maxlen=_EARLY_EVENTS_KEPT)


def log_event(
    logger: logging.Logger, event: str, /, message: str = "", *, level: int = logging.INFO, **fields: Any
) -> None:
    """Log `event` (a snake_case name that tools match on) with its facts; `message` is for people.

    A `step` among the fields overrides the step that the process is at.
    """
    happened = Event(event, level, message, fields, SYSTEM_CLOCK.wall_seconds())
    # Receivers are called here and not by a logging handler: a run log must not depend on the levels that an
    # application sets, nor on dictConfig(), which disables every logger that it does not name.
    if _receivers:
        for receive in tuple(_receivers):
            receive(happened)
    else:
        _early.append(happened)
    tell_people(logger, happened)


def tell_people(logger: logging.Logger, event: Event) -> None:
    """Hand an event to Python's logging alone, for terminals and the application's own handlers."""
    logger.log(event.level, event.message or event.name, extra={"event": event.name, "fields": event.fields})


def subscribe(receive: EventReceiver) -> None:
    """Let `receive` have every event from now on, and those that nobody has had yet."""
    while _early:
        receive(_early.popleft())
    _receivers.append(receive)


def unsubscribe(receive: EventReceiver) -> None:
    """Take `receive` out again."""
    _receivers.remove(receive)


class LogContext:
    """What every line carries; the monitor sets it."""

    def __init__(self) -> None:
        self.rank = 0
        self.attempt = 0
        self.step: int | None = None


CONTEXT: Final = LogContext()


def json_safe(value: Any) -> Any:
    """`value` in types that JSON has; NaN and infinities become the strings "NaN", "Infinity", "-Infinity"."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    return str(value)


class JsonLog(logging.Handler):
    """A file of JSON lines: one per event that it receives, and one per plain message of the library's loggers.

    A line that the disk does not take is left out, since a log is never worth a training run; closing tells how many.

    Args:
        path: Where to append; several processes may append to one file.

    Raises:
        OSError: The file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._ends_torn = not _ends_with_newline(self._descriptor)
        self._lost_lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "event"):  # it came through `receive` already, whatever the loggers' levels are
            return
        facts = {"logger": record.name}
        if record.exc_info:
            facts["exception"] = logging.Formatter().formatException(record.exc_info)
        self._append(_line(Event("log", record.levelno, record.getMessage(), facts, record.created)))

    def receive(self, event: Event) -> None:
        """Append an event."""
        self.acquire()
        try:
            self._append(_line(event))
        finally:
            self.release()

    def close(self) -> None:
        self.acquire()
        try:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
            lost, self._lost_lines = self._lost_lines, 0
        finally:
            self.release()
        super().close()
        if lost:
            LIBRARY_LOGGER.warning("%s: %d lines found no room on the disk; they are lost.", self._path, lost)

    def _append(self, line: str) -> None:
        if self._descriptor < 0:
            return
        # What a process was killed in the middle of, or a full disk cut off, must not swallow the next line.
        data = (("\n" if self._ends_torn else "") + line + "\n").encode()
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            self._lost_lines += 1
            return
        self._ends_torn = written < len(data)
        self._lost_lines += self._ends_torn


def _ends_with_newline(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def _line(event: Event) -> str:
    envelope = {
        "time": iso_utc(event.wall_seconds),
        "level": event.level_name,
        "event": event.name,
        "message": event.message,
    }
    place = {"rank": CONTEXT.rank, "attempt": CONTEXT.attempt, "step": CONTEXT.step}
    return json.dumps(json_safe({**envelope, **place, **event.fields, **envelope}))


class _WarningsToStderr(logging.StreamHandler[Any]):
    """Warnings reach the terminal, unless the application has set up logging of its own."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("production_ml %(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            # Looked up anew: a test, a notebook or a progress display may have replaced sys.stderr.
            self.setStream(sys.stderr)
            super().emit(record)


LIBRARY_LOGGER.addHandler(_WarningsToStderr())
if LIBRARY_LOGGER.level == logging.NOTSET:
    LIBRARY_LOGGER.setLevel(logging.INFO)
