"""Against a real MLflow server, where packages have to travel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from production_ml.core.errors import DamagedFileError, UnknownModelError
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate
from production_ml.mlops.experiment_tracking import ExperimentTracker
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.mlops.model_registry import ModelRegistry

pytestmark = pytest.mark.services
START_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the directory where it keeps artifacts."""
    directory = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--host", "127.0.0.1", "--port", port]
    command = [sys.executable, "-m", "mlflow", "server", *options, "--workers", "1"]
    command += ["--artifacts-destination", str(directory / "artifacts"), "--serve-artifacts"]
    # Without these, MLflow starts seven more workers and takes 2 GB.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, directory / "server.log")
            yield f"http://127.0.0.1:{port}", directory / "artifacts"
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"The MLflow server did not start:\n{log.read_text()}")


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    weights = tmp_path / "model.onnx"
    weights.write_bytes(b"one")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    described = {"name": "digits", "runtime": "onnx", "inputs": [spec], "outputs": [spec]}
    return create_package(tmp_path / "package", **described, files={"model.onnx": weights})


def test_a_package_travels_to_the_server_and_back_through_the_gate(server, package, tmp_path):
    address, artifacts = server
    verdict = EvaluationGate([AtLeast("accuracy", 0.9)]).decide({"accuracy": 0.95}, None, subject=package.content_hash)
    registry = ModelRegistry(address, cache_directory=tmp_path / "cache")
    with ExperimentTracker("digits", address).start_run("exp-001", {"lr": 0.1}) as run:
        run.log_metrics([("loss", float("nan"), 0, 1.0), ("loss", 0.5, 1, 2.0)])
        version = registry.register(package, run_id=run.run_id, verdict=verdict).version
    registry.promote("digits", version)

    assert registry.show("digits").versions[0].verdicts == {"champion": verdict}
    champion = registry.resolve("digits")
    assert (champion.directory / "model.onnx").read_bytes() == b"one"
    assert champion.directory.is_relative_to(tmp_path / "cache")
    assert registry.resolve("digits") == champion

    for stored in artifacts.rglob("model.onnx"):
        stored.write_bytes(b"onf")
    with pytest.raises(DamagedFileError):
        ModelRegistry(address, cache_directory=tmp_path / "other-cache").resolve("digits")
    assert not any((tmp_path / "other-cache").iterdir())


def test_a_password_in_the_address_is_sent_but_not_told(server):
    address = server[0].replace("://", "://alice:hunter2@")

    with pytest.raises(UnknownModelError, match="No model is called 'nosuch'") as caught:
        ModelRegistry(address).show("nosuch")

    assert "hunter2" not in str(caught.value)
