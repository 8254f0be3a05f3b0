"""The serving station: start the server, send it real requests over HTTP, and measure what comes back."""

from __future__ import annotations

import csv
import json
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from production_ml.demo.children import Child, Children, StationError, command_line
from production_ml.demo.models import MODEL
from production_ml.demo.workspace import Workspace
from production_ml.serving.open_inference import encode_request, parse_response

CONNECTIONS = 8
PASSES = 3
_START_SECONDS = 60.0
_SPLIT_DEVIATIONS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request brought."""

    version: str
    correct: bool
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionFigures:
    """What one version showed under real requests."""

    version: str
    requests: int
    share: float
    accuracy: float
    median_ms: float
    p99_ms: float


def start_server(workspace: Workspace, children: Children, weights: dict[str, int], port: int) -> tuple[Child, str]:
    """Serve aliases of the model with `weights`; returns the server and its address once it is ready.

    Raises:
        StationError: The server ended or was not ready in time.
    """
    ready = workspace.server_ready_file
    ready.unlink(missing_ok=True)
    models = [f"{MODEL}@{alias}={weight}" for alias, weight in weights.items()]
    options = ["--port", str(port), "--tracking-uri", workspace.tracking_uri, "--ready-file", str(ready)]
    server = children.start(command_line("serve", *models, *options), workspace.output("serve"))
    deadline = time.monotonic() + _START_SECONDS
    while not ready.exists():
        if not server.is_running:
            server.require_success()
            raise StationError("The server ended before it was ready.")
        if time.monotonic() > deadline:
            raise StationError(f"The server was not ready after {_START_SECONDS:.0f} s: {workspace.output('serve')}")
        time.sleep(0.05)
    return server, str(json.loads(ready.read_text())["url"])


def send_requests(url: str, table: Path) -> list[Answer]:
    """Send each scan of the test split `PASSES` times, over `CONNECTIONS` connections at once.

    Raises:
        StationError: A request was not answered with a prediction.
    """
    scans = read_test_split(table) * PASSES
    limits = httpx.Limits(max_connections=CONNECTIONS)
    with httpx.Client(base_url=url, limits=limits, timeout=30.0) as client, ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda scan: _ask(client, *scan), scans))


def read_test_split(table: Path) -> list[tuple[int, list[int]]]:
    """Label and the 64 pixels of each scan of the test split."""
    with table.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == "test"]
    return [(int(label), [int(pixel) for pixel in pixels]) for _, label, *pixels in rows]


def figures(answers: Sequence[Answer]) -> list[VersionFigures]:
    """The answers, version by version."""
    found = []
    for version in sorted({answer.version for answer in answers}):
        own = [answer for answer in answers if answer.version == version]
        milliseconds = sorted(answer.seconds * 1000 for answer in own)
        found.append(
            VersionFigures(
                version=version,
                requests=len(own),
                share=len(own) / len(answers),
                accuracy=sum(answer.correct for answer in own) / len(own),
                median_ms=statistics.median(milliseconds),
                p99_ms=milliseconds[math.ceil(0.99 * len(own)) - 1],
            )
        )
    return found


def check_split(found: Sequence[VersionFigures], wanted: dict[str, float]) -> None:
    """Whether each version got its share of the traffic, within what chance allows.

    Args:
        found: What was measured.
        wanted: Version to its share, from 0 to 1.

    Raises:
        StationError: A version got none, or a share that chance does not explain.
    """
    total = sum(version.requests for version in found)
    shares = {version.version: version.share for version in found}
    for version, share in wanted.items():
        deviation = math.sqrt(share * (1 - share) / total)
        observed = shares.get(version, 0.0)
        if abs(observed - share) > _SPLIT_DEVIATIONS * deviation:
            raise StationError(f"Version {version} answered {observed:.1%} of the requests, its share is {share:.0%}.")


def _ask(client: httpx.Client, label: int, pixels: list[int]) -> Answer:
    request = encode_request({"pixels": np.array([pixels], np.float32)})
    began = time.perf_counter()
    response = client.post(f"/v2/models/{MODEL}/infer", content=request.body, headers=request.headers)
    seconds = time.perf_counter() - began
    if response.status_code != 200:
        raise StationError(f"A request was answered with {response.status_code}: {response.text[:300]}")
    answer = parse_response(response.content)
    (logits,) = answer.outputs.values()
    return Answer(answer.version, int(logits.argmax()) == label, seconds)
