"""Experiments in MLflow: what was run, with which settings, on which code, and how it went."""

from __future__ import annotations

import logging
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import InputFileError, RegistryError
from production_ml.core.redaction import redact, redact_text
from production_ml.core.structured_logging import log_event
from production_ml.mlops.mlflow_connection import MlflowConnection

_LOGGER = logging.getLogger(__name__)
# MLflow refuses a whole request for one entry above these (mlflow/utils/validation.py).
_METRICS_PER_REQUEST: Final = 1000
_ENTRIES_PER_REQUEST: Final = 100
_LONGEST_KEY: Final = 250
_LONGEST_PARAM: Final = 6000
_LONGEST_TAG: Final = 8000
_FORBIDDEN_IN_KEYS: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
_RECORDED_PACKAGES: Final = ("production-ml", "torch", "numpy", "mlflow")

Item = TypeVar("Item")
MetricPoint = tuple[str, float, int, float]
"""Name, value, step, and the wall-clock time in seconds since the epoch."""


class ExperimentTracker:
    """Starts runs of one experiment.

    It holds no "active run": two runs may be open at once, in threads or nested.

    Args:
        experiment: The experiment's name; made by its first run.
        tracking_uri: See `MlflowConnection`.
        clock: Dates the start and the end of runs.

    Raises:
        MissingDependencyError: MLflow is not installed.
        RegistryError: The tracking store cannot be opened.
    """

    def __init__(self, experiment: str, tracking_uri: str | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.experiment = experiment
        self._mlflow = MlflowConnection(tracking_uri)
        self._clock = clock

    @property
    def tracking_uri(self) -> str:
        """Where the runs are kept."""
        return self._mlflow.tracking_uri

    @contextmanager
    def start_run(
        self, name: str, params: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[TrackedRun]:
        """Open a run; it ends as FINISHED, or as FAILED with the error's text where the block raises.

        Raises:
            RegistryError: The tracking server did not take it.
        """
        experiment_id = self._mlflow.experiment(self.experiment)
        with self._mlflow.calls(f"start the run {name!r}"):
            created = self._mlflow.client.create_run(experiment_id, run_name=name, start_time=self._now_ms())
        run = TrackedRun(self._mlflow, str(created.info.run_id))
        try:
            run.log_tags({**_provenance(), **(tags or {})})
            run.log_params(params or {})
            yield run
        except BaseException as problem:
            self._record_failure(run, problem)
            raise
        self._finish(run, "FINISHED")

    def _record_failure(self, run: TrackedRun, problem: BaseException) -> None:
        try:
            run.log_tags({"production_ml.error": f"{type(problem).__name__}: {problem}"})
            self._finish(run, "FAILED")
        except RegistryError as unreachable:
            # The error on its way to the user is the one that matters, and may well be this same lost server.
            log_event(_LOGGER, "tracking_failed", str(unreachable), level=logging.WARNING, run_id=run.run_id)

    def _finish(self, run: TrackedRun, status: str) -> None:
        with self._mlflow.calls(f"end the run {run.run_id}"):
            self._mlflow.client.set_terminated(run.run_id, status=status, end_time=self._now_ms())

    def _now_ms(self) -> int:
        return int(self._clock.wall_seconds() * 1000)


class TrackedRun:
    """An open run. Secrets, by a setting's name or in a URL, are replaced by `***` before they leave the process."""

    def __init__(self, connection: MlflowConnection, run_id: str) -> None:
        self.run_id = run_id
        self._mlflow = connection

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested ones become `optimizer.lr`, and a value too long for MLflow is cut with a warning.

        Raises:
            RegistryError: MLflow did not take them; it lets nobody change a setting that is already recorded.
        """
        entries = {_key(key): _text(key, value, _LONGEST_PARAM) for key, value in flatten(params).items()}
        for batch in _batches(entries.items(), _ENTRIES_PER_REQUEST):
            self._log_batch(params=[self._mlflow.entities.Param(key, value) for key, value in batch])

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Record what one may want to search for; unlike a setting, a tag may be changed.

        Raises:
            RegistryError: MLflow did not take them.
        """
        entries = {_key(key): _text(key, value, _LONGEST_TAG) for key, value in flatten(tags).items()}
        for batch in _batches(entries.items(), _ENTRIES_PER_REQUEST):
            self._log_batch(tags=[self._mlflow.entities.RunTag(key, value) for key, value in batch])

    def log_metrics(self, series: Iterable[MetricPoint]) -> None:
        """Record `(name, value, step, wall_seconds)` points, a thousand at a time.

        NaN stays NaN in MLflow's store; an infinity becomes the largest float there, since SQL has none.

        Raises:
            RegistryError: MLflow did not take them.
        """
        for batch in _batches(series, _METRICS_PER_REQUEST):
            self._log_batch(metrics=[self._metric(*point) for point in batch])

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Upload a file, or a directory with all it holds, into `folder` of the run's artifacts.

        Raises:
            InputFileError: There is nothing at `path`.
            RegistryError: MLflow did not take it.
        """
        source = Path(path)
        if not source.exists():
            raise InputFileError(source, "not found, so it cannot be logged as an artifact")
        with self._mlflow.calls(f"upload {source}"):
            upload = self._mlflow.client.log_artifacts if source.is_dir() else self._mlflow.client.log_artifact
            upload(self.run_id, str(source), folder)

    def _metric(self, name: str, value: float, step: int, wall_seconds: float) -> Any:
        return self._mlflow.entities.Metric(_key(name), float(value), int(wall_seconds * 1000), step)

    def _log_batch(self, **entries: list[Any]) -> None:
        with self._mlflow.calls(f"log to the run {self.run_id}"):
            self._mlflow.client.log_batch(self.run_id, **entries)


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, and mappings in lists, as one level with dotted keys; secrets as `***`."""
    return _flatten(redact(values), "")


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{key}."))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat.update(_flatten({str(index): item for index, item in enumerate(value)}, f"{key}."))
        else:
            flat[key] = value
    return flat


def _key(name: str) -> str:
    return _FORBIDDEN_IN_KEYS.sub("_", name)[:_LONGEST_KEY]


def _text(key: str, setting: Any, longest: int) -> str:
    # A URL may be an object and no string; and a cut through a password would hide from redaction that it is one.
    value = redact_text(str(setting))
    if len(value) <= longest:
        return value
    log_event(
        _LOGGER,
        "tracking_value_cut",
        f"{key} has {len(value)} characters, MLflow takes {longest}: only its beginning is recorded.",
        level=logging.WARNING,
        key=key,
        length=len(value),
    )
    return value[:longest]


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _provenance() -> dict[str, str]:
    """The code and the packages that a run depends on, as tags."""
    tags = {"production_ml.python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            tags[f"production_ml.version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _git_commit() -> str:
    """The commit of the working directory, with `-dirty` where files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        # S603, S607: a constant command; which git it is belongs to the user's PATH.
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
