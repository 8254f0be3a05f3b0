"""The one place that meets MLflow: it is imported late, kept quiet, and its failures become errors with a cure."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from production_ml.core.errors import MissingDependencyError, RegistryError
from production_ml.core.redaction import redact_text

TRACKING_URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_DATABASE: Final = "mlflow.db"
_SQLITE: Final = "sqlite:///"
# Set before the import, which reads them; what the user has set wins. MLflow's own 7 tries take minutes to say no.
_QUIET_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
_CHATTY_LOGGERS: Final = ("mlflow", "alembic")


class MlflowConnection:
    """A client of one tracking server or database, without MLflow's process-wide "active run" state.

    Args:
        tracking_uri: `http://…`, or a database such as `sqlite:///mlflow.db`. Default: the environment variable
            MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory.

    Raises:
        MissingDependencyError: MLflow is not installed.
        RegistryError: There is no such database, or it cannot be opened.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.tracking_uri = _absolute(tracking_uri or os.environ.get(TRACKING_URI_VARIABLE) or _SQLITE + _DATABASE)
        with self.calls("open the tracking store"):
            self.client: Any = _mlflow("tracking").MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)
            self.entities: Any = _mlflow("entities")

    @contextmanager
    def calls(self, intent: str) -> Iterator[None]:
        """Contain MLflow's warnings and turn its exceptions into ours; `intent` completes "could not …".

        Raises:
            RegistryError: MLflow raised.
        """
        failures = (_mlflow("exceptions").MlflowException, importlib.import_module("sqlalchemy.exc").SQLAlchemyError)
        try:
            with _quiet():
                yield
        except failures as problem:
            raise self.error(intent, str(problem)) from problem

    def error(self, intent: str, problem: str) -> RegistryError:
        """What could not be done at this address, and what to try."""
        if urlsplit(self.tracking_uri).scheme in ("http", "https"):
            cure = "Check that the MLflow server runs and is the one meant by MLFLOW_TRACKING_URI."
        else:
            cure = "Check that the database is writable and, if MLflow is newer than it, run: mlflow db upgrade URI"
        # The problem too: MLflow and SQLAlchemy like to repeat the address they were given.
        told = redact_text(_first_line(problem))
        return RegistryError(f"Could not {intent} at {self.public_uri}: {told}", cure=cure)

    @property
    def public_uri(self) -> str:
        """The tracking URI as a message may show it: without a password."""
        return redact_text(self.tracking_uri)

    def experiment(self, name: str) -> str:
        """The id of the experiment, which is made if need be.

        A database keeps its artifacts in `mlartifacts/` beside it: MLflow's default, `mlruns/` in whatever the working
        directory happens to be, loses them as soon as the next command runs elsewhere.
        """
        with self.calls(f"open the experiment {name!r}"):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            return str(self.client.create_experiment(name, artifact_location=self._artifact_location(name)))

    def _artifact_location(self, experiment: str) -> str | None:
        if not self.tracking_uri.startswith(_SQLITE):
            return None
        database = Path(self.tracking_uri.removeprefix(_SQLITE))
        return (database.parent / "mlartifacts" / experiment).as_uri()


def local_path(uri: str) -> Path | None:
    """The directory behind an artifact address, None where it has to be downloaded."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(url2pathname(parts.path))


def _absolute(uri: str) -> str:
    """Bind a database file to the directory of now: the process may change directory, MLflow caches by address."""
    path = uri.removeprefix(_SQLITE)
    if path == uri or not path or path == ":memory:":
        return uri
    return _SQLITE + str(Path(path).absolute())


def _mlflow(module: str) -> Any:
    for variable, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"mlflow.{module}")
    except ModuleNotFoundError as missing:
        raise MissingDependencyError("mlflow", extra="mlflow", purpose="Tracking and the model registry") from missing


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow deprecates its own calls, and SQLAlchemy's under us: nothing there is the user's to mend."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
