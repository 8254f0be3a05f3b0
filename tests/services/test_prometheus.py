"""A real Prometheus scrapes a live run: every rank, what they are together, and NaN as NaN."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from production_ml.monitoring.exporter.endpoint import read_endpoint
from production_ml.monitoring.run_directory import RunDirectory

pytestmark = pytest.mark.services

# A rank of a run, which lives until its input ends.
RANK = """
import math, sys
from production_ml.monitoring import TrainingMonitor
with TrainingMonitor("shop", "exp-001", 0, run_dir=sys.argv[1]) as monitor:
    rank = int(sys.argv[2])
    monitor.log({"train/loss": 1.0 + 2 * rank, "train/grad_norm": math.nan if rank else 1.0,
                 "train/up": math.inf, "train/down": -math.inf}, step=10 + rank)
    print(monitor.metrics_url, flush=True)
    sys.stdin.read()
"""

CONFIG = """
global: {scrape_interval: 200ms}
scrape_configs:
  - job_name: training
    honor_labels: true
    static_configs: [{targets: ['TARGET']}]
"""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server, asked by its HTTP API."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of `expression`."""
        question = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{question}", timeout=10) as answer:
            result: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return result

    def await_query(self, expression: str) -> list[dict[str, Any]]:
        """Ask until there is an answer; Prometheus scrapes five times a second."""
        deadline = time.monotonic() + 60
        while not (result := self.query(expression)):
            assert time.monotonic() < deadline, f"no answer to {expression}"
            time.sleep(0.1)
        return result

    def value(self, expression: str) -> float:
        """The value of the one series that `expression` finds."""
        (series,) = self.await_query(expression)
        return float(series["value"][1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def endpoint(directory: Path) -> Iterator[str]:
    """Where a run of two ranks is served; it lives as long as the tests."""
    owner = {"PRODUCTION_ML_OWNER_PID": str(os.getpid()), "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    ranks = []
    try:
        for rank in range(2):
            command = [sys.executable, "-c", RANK, str(directory / "run"), str(rank)]
            environment = {**os.environ, **owner, "RANK": str(rank), "OMP_NUM_THREADS": "1"}
            ranks.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
        urls = {rank.stdout.readline().strip() for rank in ranks if rank.stdout is not None}
        (url,) = urls
        yield url
    finally:
        for rank in ranks:
            rank.communicate()
        _stop_exporter(directory / "run")


@pytest.fixture(scope="module")
def prometheus(directory: Path, endpoint: str) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.fail("Prometheus is not installed. Install it with: apt-get install --no-install-recommends prometheus")
    config = directory / "prometheus.yml"
    config.write_text(CONFIG.replace("TARGET", urllib.parse.urlsplit(endpoint).netloc))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _await_ready(f"http://127.0.0.1:{port}/-/ready", server, directory / "prometheus.log")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_prometheus_sees_both_ranks_of_a_live_run_and_what_they_are_together(prometheus):
    prometheus.await_query('train_loss{rank="1"}')

    by_rank = {series["metric"]["rank"]: float(series["value"][1]) for series in prometheus.query("train_loss")}
    assert by_rank == {"0": 1.0, "1": 3.0}
    assert prometheus.value("train_loss_mean") == 2.0
    assert prometheus.value("train_loss_max - train_loss_min") == 2.0
    assert prometheus.value('training_step{rank="1"}') == 11
    assert prometheus.value('run_events_total{event="run_started"}') == 2


def test_nan_and_infinities_arrive_as_they_are(prometheus):
    assert math.isnan(prometheus.value('train_grad_norm{rank="1"}'))
    assert prometheus.value('train_grad_norm{rank="0"}') == 1.0
    assert math.isnan(prometheus.value("train_grad_norm_mean"))
    assert prometheus.value('train_up{rank="0"}') == math.inf
    assert prometheus.value("train_down_mean") == -math.inf


def test_series_carry_job_run_rank_and_node_and_never_a_step(prometheus):
    prometheus.await_query('train_loss{rank="1"}')

    for series in prometheus.query("train_loss"):
        assert set(series["metric"]) == {"__name__", "instance", "job", "run", "rank", "node"}
        assert series["metric"]["job"] == "shop/exp-001"
    assert prometheus.value('scrape_samples_scraped{job="training"}') == prometheus.value(
        'scrape_samples_post_metric_relabeling{job="training"}'
    )
    assert prometheus.value('up{job="training"}') == 1


def _await_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018 - one condition
            time.sleep(0.05)


def _stop_exporter(run_dir: Path) -> None:
    """The run's owner is this test's process, which lives on; so the exporter is told to go."""
    endpoint = read_endpoint(RunDirectory(run_dir), socket.gethostname())
    if endpoint is not None:
        os.kill(endpoint.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while endpoint.is_alive and time.monotonic() < deadline:
            time.sleep(0.05)
