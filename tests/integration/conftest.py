"""What integration tests share: one migrated MLflow database, and ranks that start in no time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

STARTER = Path(__file__).with_name("rank_starter.py")
LONG = 200.0


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


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., None]:
    """Run a script's `main(directory, *arguments)` on ranks, round after round: `(world_size, *arguments)`."""

    def run(script: Path, *rounds: tuple[object, ...]) -> None:
        command = [sys.executable, str(STARTER), str(script), str(tmp_path), *map(json.dumps, rounds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return run


@pytest.fixture
def assert_same() -> Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor], str], None]:
    """Compare two states bit by bit."""

    def compare(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
        assert set(found) == set(expected), what
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{what}: {name}"

    return compare
