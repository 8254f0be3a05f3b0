"""`production-ml serve` as a client meets it: a real process, a real model, real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from torch import nn

from production_ml.core.errors import ExitCode
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate
from production_ml.mlops.model_export import export_onnx
from production_ml.mlops.model_package import ModelPackage
from production_ml.mlops.model_registry import ModelRegistry
from production_ml.serving.open_inference import encode_request, parse_response

INFER = "/v2/models/digits/infer"
TOKEN = "s3cret-of-the-test"
ROWS = np.random.default_rng(3).random((4, 64), np.float32)
COMMAND = [sys.executable, "-m", "production_ml.cli.main", "serve"]
# Enough work per row that a body at the limit keeps the model busy for a good part of a second.
HIDDEN = 512


@dataclass(frozen=True)
class Trained:
    """A model in torch, and its package."""

    module: nn.Module
    package: ModelPackage

    @property
    def version(self) -> str:
        return self.package.content_hash[:12]

    def answers(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.module(torch.from_numpy(x)).numpy()


@dataclass
class Server:
    """A running `production-ml serve`."""

    process: subprocess.Popen[str]
    announcement: str
    ready: dict
    ready_file: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.ready["url"], timeout=30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def environment(**extra: str) -> dict[str, str]:
    ours = ("PRODUCTION_ML_TOKEN", "MLFLOW_TRACKING_URI")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **extra}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[Trained]:
    """Three nets of one interface."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)).eval()
        directory = tmp_path_factory.mktemp(f"digits-{seed}")
        names = {"input_names": ["pixels"], "output_names": ["logits"]}
        package = export_onnx(module, (torch.randn(2, 64),), directory, name="digits", **names)
        made.append(Trained(module, package))
    return made


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Server]]:
    started: list[Server | subprocess.Popen] = []

    def start(*arguments: str, **extra: str) -> Server:
        ready_file = tmp_path / f"ready-{len(started)}.json"
        command = [*COMMAND, *arguments, "--port", "0", "--ready-file", str(ready_file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(**extra))
        started.append(process)
        announcement = process.stdout.readline()
        assert announcement, "the server ended before it was ready"
        server = Server(process, announcement, json.loads(ready_file.read_text()), ready_file)
        started.append(server)
        return server

    yield start
    for one in started:
        if isinstance(one, Server):
            one.client.close()
        else:
            one.kill()
            one.wait()
            one.stdout.close()


def directory(model: Trained) -> str:
    return str(model.package.directory)


class Load:
    """Clients that ask one after another until the server takes no more connections, each knowing its answer."""

    def __init__(self, url: str, allowed: dict[str, Trained], clients: int = 6) -> None:
        self._url = url
        self._allowed = {version: model.answers(ROWS[:1]) for version, model in allowed.items()}
        self._over = threading.Event()
        self._some_answers = threading.Semaphore(0)
        self.versions: list[str] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def wait_for_answers(self, count: int) -> None:
        for _ in range(count):
            assert self._some_answers.acquire(timeout=30), self.failures

    def finish(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        message = encode_request({"pixels": ROWS[:1]})
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._over.is_set():
                try:
                    response = client.post(INFER, content=message.body, headers=message.headers)
                except httpx.ConnectError:
                    return  # refused, and so not lost: the client knows that nobody has its request
                except httpx.HTTPError as problem:
                    self.failures.append(repr(problem))
                    return
                self._check(response)
                self._some_answers.release()

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.failures.append(f"{response.status_code} {response.text}")
            return
        answer = parse_response(response.content)
        self.versions.append(answer.version)
        if not np.allclose(answer.outputs["logits"], self._allowed[answer.version], rtol=1e-4, atol=1e-5):
            self.failures.append(f"a wrong answer from version {answer.version}")


@pytest.mark.parametrize("binary", [False, True])
def test_the_answers_are_the_ones_of_the_net_that_was_exported(serve, trained, binary):
    server = serve(directory(trained[0]))
    message = encode_request({"pixels": ROWS}, binary=binary, request_id="r-1")

    response = server.client.post(INFER, content=message.body, headers=message.headers)

    answer = parse_response(response.content, response.headers.get("inference-header-content-length"))
    assert (answer.model, answer.version, answer.id) == ("digits", trained[0].version, "r-1")
    np.testing.assert_allclose(answer.outputs["logits"], trained[0].answers(ROWS), rtol=1e-4, atol=1e-5)


def test_the_example_that_is_announced_works_when_it_is_pasted(serve, trained):
    server = serve(directory(trained[0]))
    command = server.announcement.partition("Try: ")[2]

    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)

    logits = json.loads(answer.stdout)["outputs"][0]["data"]
    np.testing.assert_allclose([logits], trained[0].answers(np.zeros((1, 64), np.float32)), rtol=1e-4, atol=1e-5)


def test_the_ready_file_is_true_and_goes_with_the_server(serve, trained):
    server = serve(directory(trained[0]))

    assert server.ready["pid"] == server.process.pid
    assert server.ready["url"] == f"http://127.0.0.1:{server.ready['port']}"
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    assert server.stop() == 0
    assert not server.ready_file.exists()


def test_traffic_is_split_by_weight_and_pinned_by_version(serve, trained):
    champion, challenger = trained[:2]
    server = serve(f"{directory(champion)}=80", f"{directory(challenger)}=20")
    body = json.dumps({"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]})

    spread = [server.client.post(INFER, content=body).json()["model_version"] for _ in range(600)]
    pinned = server.client.post(f"/v2/models/digits/versions/{challenger.version}/infer", content=body).json()

    assert 70 < spread.count(challenger.version) < 175  # 120 expected, 5 standard deviations
    assert spread.count(champion.version) + spread.count(challenger.version) == 600
    assert pinned["model_version"] == challenger.version


def test_an_alias_that_moves_is_followed_on_sighup_without_a_failed_request(serve, trained, tracking_uri):
    registry = ModelRegistry(tracking_uri)
    for model in trained[:2]:
        verdict = EvaluationGate([AtLeast("accuracy", 0.9)]).decide(
            {"accuracy": 0.95}, None, subject=model.package.content_hash
        )
        registry.register(model.package, verdict=verdict)
    registry.promote("digits", 1)
    server = serve("digits@champion", "--tracking-uri", tracking_uri)
    allowed = {"1": trained[0], "2": trained[1]}

    with Load(server.ready["url"], allowed) as load:
        load.wait_for_answers(50)
        registry.promote("digits", 2)
        server.process.send_signal(signal.SIGHUP)
        while "2" not in load.versions[-6:]:
            load.wait_for_answers(1)

    assert load.failures == []
    first_new = load.versions.index("2")
    assert set(load.versions[first_new + 12 :]) <= {"2"}
    answer = server.client.post(INFER, content=encode_request({"pixels": ROWS}).body).json()
    assert (answer["model_version"], answer["parameters"]) == ("2", {"alias": "champion"})


def test_ten_swaps_under_load_fail_no_request(serve, trained, tmp_path):
    current = tmp_path / "current"
    current.symlink_to(directory(trained[0]))
    log = tmp_path / "serve.log"
    server = serve(str(current), "--log-file", str(log))

    with Load(server.ready["url"], {model.version: model for model in trained}) as load:
        load.wait_for_answers(20)
        for swap in range(1, 11):
            model = trained[swap % 3]
            (tmp_path / "next").symlink_to(directory(model))
            (tmp_path / "next").rename(current)
            server.process.send_signal(signal.SIGHUP)
            while log.read_text().count("version_swapped") < swap:
                load.wait_for_answers(1)

    assert load.failures == []
    assert server.stop() == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert set(load.versions) == {model.version for model in trained}
    assert events == ["server_started", *["version_swapped"] * 10, "server_stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_no_request(serve, trained, number):
    server = serve(directory(trained[0]))

    with Load(server.ready["url"], {trained[0].version: trained[0]}) as load:
        load.wait_for_answers(100)
        exit_code = server.stop(number)

    assert load.failures == []
    assert exit_code == 0


def test_a_request_that_is_being_computed_is_answered_after_sigterm(serve, trained):
    server = serve(directory(trained[0]))
    many = np.random.default_rng(0).random((60_000, 64), np.float32)
    message = encode_request({"pixels": many}, binary=True)
    answered: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answered.append(server.client.post(INFER, content=message.body, headers=message.headers))
    )

    asking.start()
    begun = f'serving_batch_rows_sum{{model="digits",version="{trained[0].version}"}} 60000.0'
    with httpx.Client(base_url=server.ready["url"]) as other:
        while begun not in other.get("/metrics").text:
            assert asking.is_alive(), "the answer came before the batch was counted"
    exit_code = server.stop()
    asking.join()

    assert exit_code == 0
    answer = parse_response(answered[0].content, answered[0].headers["inference-header-content-length"])
    np.testing.assert_allclose(answer.outputs["logits"], trained[0].answers(many), rtol=1e-4, atol=1e-4)


def test_a_client_that_stalls_in_the_middle_of_a_request_does_not_keep_the_server_from_ending(serve, trained):
    server = serve(directory(trained[0]))
    address = ("127.0.0.1", server.ready["port"])

    with socket.create_connection(address) as silent, socket.create_connection(address) as stalled:
        stalled.sendall(f"POST {INFER} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert server.client.get("/v2/health/live").status_code == 200
        exit_code = server.stop()
        silent.settimeout(5)
        assert silent.recv(1) == b""

    assert exit_code == 0


HANGING = """
from pathlib import Path
from production_ml.serving import ModelServer, ServerConfig
from production_ml.testing.serving import FakeRuntimes, fake_package

runtimes = FakeRuntimes()
package = fake_package(Path("package"), width=-1)
server = ModelServer([package.directory], ServerConfig(port=0, ready_file=Path("ready.json")), runtimes=runtimes)


def hang_from_now_on(url):
    runtimes.made[0].free.clear()
    print(url, flush=True)


server.run(on_ready=hang_from_now_on)
"""


def test_a_second_signal_ends_a_server_whose_batch_hangs(tmp_path):
    command = [sys.executable, "-c", HANGING]
    asked = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()) as process:
        url = process.stdout.readline().strip()
        asking = threading.Thread(target=lambda: asks(url, asked))
        asking.start()
        while not re.search(r"^serving_batch_rows_sum\{.* 1\.0$", httpx.get(f"{url}/metrics").text, re.MULTILINE):
            assert process.poll() is None
        process.terminate()
        while is_listening(url):
            assert process.poll() is None
        process.terminate()
        exit_code = process.wait(timeout=60)
    asking.join()

    assert exit_code == 1
    assert not (tmp_path / "ready.json").exists()


def asks(url: str, body: dict) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{url}/v2/models/doubler/infer", json=body, timeout=60)


def is_listening(url: str) -> bool:
    try:
        httpx.get(f"{url}/v2/health/live")
    except httpx.ConnectError:
        return False
    return True


def test_a_body_over_the_limit_is_refused_and_the_connection_lives_on(serve, trained):
    server = serve(directory(trained[0]))

    refused = server.client.post(INFER, content=bytes(17 * 2**20))
    refused_while_streaming = server.client.post(INFER, content=(bytes(2**20) for _ in range(17)))
    good = server.client.post(INFER, content=encode_request({"pixels": ROWS}).body)

    assert [response.status_code for response in (refused, refused_while_streaming, good)] == [413, 413, 200]
    assert "16777216 bytes" in refused.json()["error"]


def test_a_token_from_the_environment_is_asked_for_and_never_shown(serve, trained, tmp_path):
    log = tmp_path / "serve.log"
    server = serve(directory(trained[0]), "--host", "0.0.0.0", "--log-file", str(log), PRODUCTION_ML_TOKEN=TOKEN)
    body = encode_request({"pixels": ROWS}).body

    without = server.client.post(INFER, content=body)
    with_it = server.client.post(INFER, content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    command = server.announcement.partition("Try: ")[2]
    pasted = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, env=environment(PRODUCTION_ML_TOKEN=TOKEN)
    )

    assert (without.status_code, with_it.status_code) == (401, 200)
    assert "outputs" in json.loads(pasted.stdout)
    assert TOKEN not in server.announcement + log.read_text() + without.text


def fails(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment())


def test_other_machines_are_not_let_in_without_a_token(trained):
    result = fails(directory(trained[0]), "--host", "0.0.0.0")

    assert result.returncode == 2
    assert "PRODUCTION_ML_TOKEN" in result.stderr


def test_a_port_in_use_is_an_error_with_a_cure(trained):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = fails(directory(trained[0]), "--port", str(other.getsockname()[1]))

    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "--port" in result.stderr


def test_an_alias_that_nobody_holds_is_the_registrys_own_error(trained, tracking_uri):
    ModelRegistry(tracking_uri).register(trained[0].package)

    result = fails("digits@champion", "--port", "0", "--tracking-uri", tracking_uri)

    assert result.returncode == ExitCode.BAD_INPUT
    assert "digits has no alias 'champion'" in result.stderr


def test_a_flipped_bit_in_the_weights_is_not_served(trained, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in trained[0].package.directory.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    data = bytearray((damaged / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(data)

    result = fails(str(damaged), "--port", "0")

    assert result.returncode == 3
    assert "model.onnx: does not match its hash" in result.stderr
