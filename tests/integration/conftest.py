"""What the tests with real MLflow share: one migrated database, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; its tables take over a second to make."""
    from production_ml.mlops.mlflow_connection import MlflowConnection

    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowConnection(f"sqlite:///{path}").experiment("Default")
    return path


@pytest.fixture
def tracking_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """A fresh MLflow database of the test's own."""
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
