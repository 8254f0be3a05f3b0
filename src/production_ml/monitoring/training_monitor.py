"""The monitor in the training loop: it appends to the run log and does nothing else."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError
from production_ml.core.redaction import redact
from production_ml.core.structured_logging import CONTEXT, EventHandler, attach, detach, json_file_handler
from production_ml.monitoring.exporter import CLOSED_EVENT, ensure_exporter
from production_ml.monitoring.run_directory import (
    RunIdentity,
    choose_run_directory,
    process_start,
    shared_run_id,
)
from production_ml.monitoring.run_log import RunLogWriter, Source

AlertLevel = Literal["info", "warning", "error"]
_logger = logging.getLogger(__name__)


class TrainingMonitor:
    """Logs a run's metrics and events, from every rank, for a few microseconds a call.

    Each rank makes its own monitor; together they write one run. The first one on a node starts the exporter process,
    which serves Prometheus and feeds the other sinks from the log.

    Args:
        project: What the runs belong to. Names a directory.
        experiment: What is tried. Names a directory.
        metrics_port: Where Prometheus finds the metrics; taken ports are passed over with a warning. None for no exporter.
        metrics_host: The address to serve on; only this machine by default.
        run_id: Who the run is; a launcher's word goes before it, and without either it is new.
        run_dir: Where the run is kept, instead of `runs/PROJECT/EXPERIMENT/RUN_ID`.
        config: Hyperparameters and the like, recorded with the run; secrets are left out.
        sinks: The views that the exporter keeps up to date.

    Raises:
        ConfigError: A name cannot name a directory, or the port is none.
        RunDirectoryError: The run directory cannot be written.
    """

    def __init__(
        self,
        project: str,
        experiment: str,
        metrics_port: int | None = 8000,
        *,
        metrics_host: str = "127.0.0.1",
        run_id: str | None = None,
        run_dir: Path | str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: tuple[str, ...] = ("prometheus",),
    ) -> None:
        if metrics_port is not None and not 0 <= metrics_port < 65536:
            raise ConfigError("metrics_port", metrics_port, "must be a port, 0 to 65535, or None for no exporter")
        env = DistributedEnv.read()
        wish = RunIdentity(project=project, experiment=experiment, run_id=run_id or shared_run_id(os.environ, env))
        self._run = choose_run_directory(wish, run_dir=run_dir, environ=os.environ)
        self._run.create()
        self.identity = self._run.claim(wish)
        self._step = -1
        self._refused: set[str] = set()
        self._closed = False
        self._writer = RunLogWriter(lambda: self._run.run_log(f"rank-{env.rank:05d}", env.attempt), _source(env))
        self._record_events(env)
        self._writer.event("run_started" if env.attempt == 0 else "run_restarted", **_environment(config or {}))
        endpoint = None
        if metrics_port is not None:
            endpoint = ensure_exporter(self._run, host=metrics_host, port=metrics_port, sinks=sinks)
        self.metrics_url = endpoint.url if endpoint else None

    @property
    def run_dir(self) -> Path:
        """Where this run is kept."""
        return self._run.path

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append `metrics`: names such as `train/loss`, values with a `float()` (NaN and infinities are kept).

        Args:
            metrics: Name to value. A value that is no number is left out with a warning and an event; the others are
                logged, since a metric is never worth a training run.
            step: The step they belong to; without it `metrics["train/step"]`, else one more than the last.
        """
        if step is None:
            wished = metrics.get("train/step")
            step = int(wished) if wished is not None else self._step + 1
        self._step = step
        CONTEXT.step = step
        names = tuple(metrics)
        try:
            values = tuple([_number(value) for value in metrics.values()])
        except (TypeError, ValueError, OverflowError, RuntimeError):
            names, values = self._numbers_only(metrics)
        self._writer.metrics(step, names, values)

    def alert(self, title: str, text: str = "", level: AlertLevel = "warning") -> None:
        """Record something that a person should know of, now."""
        self._writer.event(
            "alert", step=self._step if self._step >= 0 else None, level=level, message=text, title=title
        )

    def close(self) -> None:
        """End this rank's part of the run. Logging after it is an error in the caller's code."""
        if self._closed:
            return
        self._closed = True
        self._writer.event(CLOSED_EVENT)
        for handler in self._handlers:
            detach(handler)
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._former_hook
        self._writer.close()

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and error is not None:
            self._record_exception(kind, error, trace)
        self.close()

    def _record_events(self, env: DistributedEnv) -> None:
        CONTEXT.rank, CONTEXT.attempt, CONTEXT.step = env.rank, env.attempt, None
        self._handlers: list[logging.Handler] = [
            EventHandler(self._on_event),
            json_file_handler(self._run.structured_log(f"rank-{env.rank:05d}")),
        ]
        attach(*self._handlers)
        self._former_hook = sys.excepthook
        sys.excepthook = self._on_uncaught

    def _on_event(self, event: str, level: str, message: str, fields: dict[str, Any]) -> None:
        at_step = self._step if self._step >= 0 else None
        self._writer.event(event, **{"step": at_step, **fields, "level": level, "message": message})

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._record_exception(kind, error, trace)
        self._former_hook(kind, error, trace)

    def _record_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        at_step = self._step if self._step >= 0 else None
        text = "".join(traceback.format_exception(kind, error, trace))
        self._writer.event(
            "exception", step=at_step, level="error", message=f"{kind.__name__}: {error}", traceback=text
        )

    def _numbers_only(self, metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                numbers[name] = _number(value)
            except (TypeError, ValueError, OverflowError, RuntimeError):
                self._refuse(name, value)
        return tuple(numbers), tuple(numbers.values())

    def _refuse(self, name: str, value: object) -> None:
        if name in self._refused:
            return
        self._refused.add(name)
        shown = repr(value)[:200]
        message = (
            f"metric {name!r} = {shown} ({type(value).__name__}) is not a number and is left out from now on; "
            "the other metrics of the call are logged. Log one number per name, such as value.mean()."
        )
        _logger.warning(message)
        self._writer.event("metric_rejected", step=self._step, level="warning", message=message, metric=name)


def _number(value: Any) -> float:
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is str or kind is bytes:  # float("1.5") works, and hides that text was logged
        raise TypeError("text")
    return float(value)


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


def _environment(config: Mapping[str, Any]) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    return {
        "config": redact(config),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": str(torch.__version__) if torch is not None else None,
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }
