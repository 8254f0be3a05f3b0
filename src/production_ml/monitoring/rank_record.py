"""What one rank puts on record: metrics, everybody's events and uncaught exceptions, until it is closed."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from types import TracebackType
from typing import Any

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import RunDirectoryError
from production_ml.core.structured_logging import CONTEXT, LIBRARY_LOGGER, Event, JsonLog, subscribe, unsubscribe
from production_ml.monitoring.run_directory import RunDirectory, process_start
from production_ml.monitoring.run_log import EventRecord, RunLogWriter, Source
from production_ml.monitoring.run_watch import CLOSED_EVENT


class RankRecord:
    """The rank's run log and structured log, written to by all of the process.

    It is apart from the monitor because the process holds it, as a receiver of events and an exception hook, whether
    or not anybody still holds the monitor.

    Args:
        run: The run, whose directories exist.
        env: Which rank and attempt this process is.

    Raises:
        RunDirectoryError: A log cannot be written.
    """

    def __init__(self, run: RunDirectory, env: DistributedEnv) -> None:
        role = f"rank-{env.rank:05d}"
        self.step: int | None = None
        self.is_closed = False
        self._writer = RunLogWriter(lambda: run.run_log(role, env.attempt), _source(env))
        try:
            self._json_log = JsonLog(run.structured_log(role))
        except OSError as problem:
            raise RunDirectoryError(run.path, f"logs cannot be written ({problem.strerror})") from problem
        CONTEXT.rank, CONTEXT.attempt, CONTEXT.step = env.rank, env.attempt, None
        subscribe(self._receive)
        LIBRARY_LOGGER.addHandler(self._json_log)
        self._former_hook = sys.excepthook
        sys.excepthook = self._on_uncaught

    def metrics(self, step: int, names: tuple[str, ...], values: tuple[float, ...]) -> None:
        """Append the `values` of `names`, which are equally many, at `step`."""
        self._writer.metrics(step, names, values)

    def note(self, name: str, message: str = "", level: int = logging.INFO, **fields: Any) -> Event:
        """An event of this rank's record alone; `log_event` would tell all records of the process."""
        event = Event(name, level, message, fields, SYSTEM_CLOCK.wall_seconds())
        self._receive(event)
        return event

    def note_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Record an exception that ends the script."""
        text = "".join(traceback.format_exception(kind, error, trace))
        self.note("exception", f"{kind.__name__}: {error}", logging.ERROR, traceback=text)

    def close(self) -> None:
        """Record the end and let go of the process; a second call does nothing."""
        if self.is_closed:
            return
        self.note(CLOSED_EVENT)
        self.is_closed = True
        unsubscribe(self._receive)
        LIBRARY_LOGGER.removeHandler(self._json_log)
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._former_hook
        self._writer.close()
        self._json_log.close()

    def _receive(self, event: Event) -> None:
        if self.is_closed:
            return
        facts = {"step": self.step, **event.fields}
        step = facts.pop("step")
        record = EventRecord(event.name, event.wall_seconds, step, event.level_name, event.message, facts)
        self._writer.append(record)
        self._json_log.receive(event)

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.note_exception(kind, error, trace)
        self._former_hook(kind, error, trace)


def _source(env: DistributedEnv) -> Source:
    return Source(
        role="rank",
        rank=env.rank,
        world_size=env.world_size,
        attempt=env.attempt,
        node=socket.gethostname(),
        pid=os.getpid(),
        owner_pid=env.owner_pid,
        owner_start=process_start(env.owner_pid),
        started_at=SYSTEM_CLOCK.wall_seconds(),
    )
