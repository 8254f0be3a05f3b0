"""The monitor in the training loop: it appends to the run log and does nothing else."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from weakref import WeakValueDictionary, finalize

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.redaction import redact, redact_command
from production_ml.core.structured_logging import CONTEXT, tell_people
from production_ml.monitoring.exporter.start import check_address, ensure_exporter
from production_ml.monitoring.rank_record import RankRecord
from production_ml.monitoring.run_directory import RunIdentity, choose_run_directory, shared_run_id
from production_ml.monitoring.sinks import ON_EVERY_NODE, SINKS

AlertLevel = Literal["info", "warning", "error"]
_LEVELS: dict[str, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# What float() raises: Python and numpy the first three, torch for a tensor of many elements also the last.
_NO_NUMBER = (TypeError, ValueError, OverflowError, RuntimeError)
_logger = logging.getLogger(__name__)
_Asked = tuple[int, str, str, str | None, str]
_monitors: WeakValueDictionary[_Asked, TrainingMonitor] = WeakValueDictionary()


class TrainingMonitor:
    """Logs a run's metrics and events, from every rank, for a few microseconds a call.

    Each rank makes its own monitor; together they write one run. The first one on a node starts the exporter process,
    which serves Prometheus and feeds the other sinks from the log.

    A monitor that nothing refers to any more is closed. So is one whose cell is run again in a notebook: a process has
    one monitor for a project, experiment, `run_id` and `run_dir`, and a new one closes the one before it.

    Args:
        project: What the runs belong to. Names a directory.
        experiment: What is tried. Names a directory.
        metrics_port: Where Prometheus finds the metrics; taken ports are passed over with a warning. 0 for any free
            port, None for no exporter.
        metrics_host: The IPv4 address to serve on; only this machine by default.
        run_id: Who the run is. Without it a launcher's word counts, and without either it is new.
        run_dir: Where the run is kept, instead of `runs/PROJECT/EXPERIMENT/RUN_ID`; a launcher's word goes before it.
        config: Hyperparameters and the like, recorded with the run; secrets are left out.
        sinks: The views that the exporter keeps up to date.

    Raises:
        ConfigError: A name cannot name a directory, an address cannot be served on, or a sink is not known.
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
        sinks: Sequence[str] = ("prometheus",),
    ) -> None:
        check_address(metrics_host, metrics_port)
        for sink in sinks:
            SINKS.check(sink)
        env = DistributedEnv.read()
        wish = RunIdentity(project=project, experiment=experiment, run_id=run_id or shared_run_id(os.environ, env))
        self._run = choose_run_directory(wish, run_dir=run_dir, environ=os.environ)
        self._run.create()
        self.identity = self._run.claim(wish)
        self._refused: set[str] = set()
        asked = (os.getpid(), project, experiment, run_id, str(run_dir))
        _close_earlier(asked)
        self._record = RankRecord(self._run, env)
        _monitors[asked] = self
        finalize(self, self._record.close)  # at the script's end too: one that never calls close() has finished as well
        self._record.note("run_started" if env.attempt == 0 else "run_restarted", **_environment(config or {}))
        wanted = tuple(sink for sink in sinks if env.node_rank == 0 or sink in ON_EVERY_NODE)
        self.metrics_url: str | None = None
        if metrics_port is not None and wanted:
            # After the first event: an exporter that is about to go sees there that the run goes on.
            found = ensure_exporter(
                self._run, host=metrics_host, port=metrics_port, sinks=wanted, owner_pid=env.owner_pid
            )
            self.metrics_url = found.url if found else None

    @property
    def run_dir(self) -> Path:
        """Where this run is kept."""
        return self._run.path

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append `metrics`: names such as `train/loss`, values with a `float()` (NaN and infinities are kept).

        A value that is no number is left out with a warning and an event, once for each name; the others are logged,
        since a metric is never worth a training run.

        Args:
            metrics: Name to value.
            step: The step they belong to; without it `metrics["train/step"]`, else one more than the last.
        """
        if self._record.is_closed:
            self._refuse("log() after close()", "the monitor is closed, so metrics are lost from now on. Close it last")
            return
        step = CONTEXT.step = self._record.step = self._choose_step(step, metrics)
        names = tuple(metrics)
        try:
            values = tuple([_number(value) for value in metrics.values()])
        except _NO_NUMBER:
            names, values = self._numbers_only(metrics)
        self._record.metrics(step, names, values)

    def alert(self, title: str, text: str = "", level: AlertLevel = "warning") -> None:
        """Record something that a person should know of, now; a level that is none counts as an error."""
        known = _LEVELS.get(str(level))
        if known is None:
            levels = ", ".join(_LEVELS)
            self._refuse("level", f"alert level = {_shown(level)} is none of {levels}; such alerts are taken as errors")
        event = self._record.note("alert", text, known or logging.ERROR, title=title)
        tell_people(_logger, replace(event, message=f"{title}: {text}" if text else title))

    def close(self) -> None:
        """End this rank's part of the run. What is logged later is left out, with one warning."""
        self._record.close()

    def __enter__(self) -> TrainingMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # sys.exit() is no failure of the script; the launcher sees its code.
        if kind is not None and error is not None and not isinstance(error, SystemExit):
            self._record.note_exception(kind, error, trace)
        self.close()

    def _choose_step(self, given: Any, metrics: Mapping[str, Any]) -> int:
        """The step as an int64; what cannot be one is refused like a metric, and the steps are counted on."""
        wished = metrics.get("train/step") if given is None else given
        if wished is not None:
            try:
                step = int(wished)
            except _NO_NUMBER:
                pass
            else:
                if -(1 << 63) <= step < 1 << 63:
                    return step
            self._refuse("step", f"step = {_shown(wished)} is no whole number; steps are counted on from the last one")
        return 0 if self._record.step is None else self._record.step + 1

    def _numbers_only(self, metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                numbers[name] = _number(value)
            except _NO_NUMBER:
                self._refuse(
                    name,
                    f"metric {name!r} = {_shown(value)} is not a number and is left out from now on; the other metrics "
                    "of the call are logged. Log one number per name, such as value.mean()",
                )
        return tuple(numbers), tuple(numbers.values())

    def _refuse(self, name: str, problem: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            tell_people(_logger, self._record.note("metric_rejected", f"{problem}.", logging.WARNING, metric=name))


def _close_earlier(asked: _Asked) -> None:
    """Close the monitor for which this process asked with the same words: nobody means it any more."""
    earlier = _monitors.get(asked)
    if earlier is not None and not earlier._record.is_closed:
        _logger.info("%s: its monitor is closed, since the same script makes it again.", earlier.run_dir)
        earlier.close()


def _number(value: Any) -> float:
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return float(value)
    if isinstance(value, str | bytes | bytearray):  # float("1.5") works, and hides that text was logged
        raise TypeError("text")
    # torch warns of float() on a loss that still has its graph.
    detach = getattr(value, "detach", None)
    return float(value if detach is None else detach())


def _shown(value: object) -> str:
    return f"{repr(value)[:200]} ({type(value).__name__})"


def _environment(config: Mapping[str, Any]) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    return {
        "config": redact(config),
        "command": redact_command(sys.argv),
        "python": platform.python_version(),
        "torch": str(torch.__version__) if torch is not None else None,
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }
