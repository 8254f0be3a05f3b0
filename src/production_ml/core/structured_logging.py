"""Structured logs: one JSON line per event, with the rank, the attempt and the step it belongs to."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import iso_utc

LIBRARY_LOGGER: Final = logging.getLogger("production_ml")
_EARLY_EVENTS_KEPT: Final = 256


def log_event(
    logger: logging.Logger, event: str, message: str = "", *, level: int = logging.INFO, **fields: Any
) -> None:
    """Log `event` (a snake_case name that tools match on) with its facts; `message` is for people.

    A `step` among the fields overrides the step that the process is at.
    """
    logger.log(level, message or event, extra={"event": event, "fields": fields})


class LogContext:
    """What every line carries; the monitor sets it."""

    def __init__(self) -> None:
        self.rank = 0
        self.attempt = 0
        self.step: int | None = None


CONTEXT: Final = LogContext()


def json_safe(value: Any) -> Any:
    """`value` in types that JSON has; NaN and infinities become the strings "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


class JsonLineFormatter(logging.Formatter):
    """One record, one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": iso_utc(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            "rank": CONTEXT.rank,
            "attempt": CONTEXT.attempt,
            "step": CONTEXT.step,
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(json_safe(line))


class EventHandler(logging.Handler):
    """Hands each record that `log_event` made to `receive(event, level, message, fields)`."""

    def __init__(self, receive: Callable[[str, str, str, dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event is not None:
            fields: dict[str, Any] = getattr(record, "fields", {})
            self._receive(event, record.levelname.lower(), record.getMessage(), fields)


class _EarlyEvents(logging.Handler):
    """Keeps the first events until a monitor comes, since a script may resume before it starts to monitor."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: deque[logging.LogRecord] = deque(maxlen=_EARLY_EVENTS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "event"):
            self.records.append(record)


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


_EARLY: Final = _EarlyEvents()
LIBRARY_LOGGER.addHandler(_EARLY)
LIBRARY_LOGGER.addHandler(_WarningsToStderr())
LIBRARY_LOGGER.setLevel(logging.INFO)


def attach(*handlers: logging.Handler) -> None:
    """Add handlers to the library's logger and give them the events that came before."""
    for handler in handlers:
        for record in list(_EARLY.records):
            handler.handle(record)
        LIBRARY_LOGGER.addHandler(handler)
    _EARLY.records.clear()
    LIBRARY_LOGGER.removeHandler(_EARLY)


def detach(handler: logging.Handler) -> None:
    """Take `handler` away and close it."""
    LIBRARY_LOGGER.removeHandler(handler)
    handler.close()
    if _EARLY not in LIBRARY_LOGGER.handlers:
        LIBRARY_LOGGER.addHandler(_EARLY)


def json_file_handler(path: Path) -> logging.Handler:
    """A handler that appends JSON lines to `path`, from the level INFO up."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(JsonLineFormatter())
    return handler
