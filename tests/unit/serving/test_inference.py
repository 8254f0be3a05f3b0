"""The inference endpoint answers what was asked, and says what was wrong where it cannot."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import orjson
import pytest

from production_ml.serving.batching import BatchingConfig
from production_ml.serving.open_inference import encode_request, parse_response
from production_ml.testing.serving import POISON, fake_package

INFER = "/v2/models/doubler/infer"


@pytest.fixture
def post(run, client_of):
    """Sends one request to a fresh server."""

    def send(path: str = INFER, *models, settings=None, **request) -> httpx.Response:
        async def scenario():
            async with client_of(*models, **(settings or {})) as (_, client):
                return await client.post(path, **request)

        return run(scenario())

    return send


@pytest.fixture
def two_versions(tmp_path):
    """Two packages of one name, 80 to 20, that answer 2·x and 3·x."""
    made = [fake_package(tmp_path / str(scale), scale=scale) for scale in (2, 3)]
    return [f"{package.directory}={weight}" for package, weight in zip(made, (80, 20), strict=True)]


def test_the_answer_names_the_request_the_model_and_the_version(post, ask, tmp_path):
    package = fake_package(tmp_path / "doubler")

    response = post(json={"id": "42", **ask(1, 2, 3)})

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": "42",
        "model_name": "doubler",
        "model_version": package.content_hash[:12],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 6]}],
    }


def test_binary_data_is_answered_with_binary_data(post):
    x = np.random.default_rng(1).random((5, 3), np.float32)
    message = encode_request({"x": x}, binary=True, request_id="b")

    response = post(content=message.body, headers=message.headers)

    assert response.headers["content-type"] == "application/octet-stream"
    answer = parse_response(response.content, response.headers["inference-header-content-length"])
    np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
    assert answer.id == "b"


def test_a_routing_key_meets_one_version_and_others_the_split(run, client_of, ask, two_versions):
    async def scenario():
        async with client_of(*two_versions) as (_, client):

            async def version(**headers: str) -> str:
                return (await client.post(INFER, json=ask(1, 1, 1), headers=headers)).json()["model_version"]

            sticky = [[await version(**{"X-Routing-Key": f"client-{key}"}) for _ in range(3)] for key in range(40)]
            return sticky, [await version() for _ in range(300)]

    sticky, spread = run(scenario())

    assert all(len(set(versions)) == 1 for versions in sticky)
    assert len({versions[0] for versions in sticky}) == 2
    assert 20 < min(spread.count(version) for version in set(spread)) < 110  # 60 expected, 6 standard deviations


def test_a_pinned_version_is_out_of_the_split(run, client_of, ask, two_versions):
    async def scenario():
        async with client_of(*two_versions) as (server, client):
            pinned = server.slots[1].version.version
            path = f"/v2/models/doubler/versions/{pinned}/infer"
            answers = [(await client.post(path, json=ask(1, 1, 1))).json() for _ in range(20)]
            return pinned, answers

    pinned, answers = run(scenario())

    assert {answer["model_version"] for answer in answers} == {pinned}
    assert answers[0]["outputs"][0]["data"] == [3, 3, 3]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/v2/models/digits/infer", "model 'digits' is not served here; known: doubler"),
        ("/v2/models/doubler/versions/9/infer", "version '9' of doubler is not served here; known: "),
    ],
)
def test_an_unknown_model_is_answered_with_the_known_ones(post, ask, path, known):
    response = post(path, json=ask(1, 2, 3))

    assert response.status_code == 404
    assert known in response.json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "problem"),
    [
        ({"content": b"{"}, 400, "the body is not JSON"),
        ({"content": b""}, 400, "the body is not JSON"),
        ({"json": {"inputs": []}}, 400, "inputs are missing: x"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "9"}}, 400, "the body has 2 bytes"),
        ({"content": b"{}", "headers": {"Content-Encoding": "gzip"}}, 415, "compressed"),
        ({"content": b"{}", "headers": {"Content-Length": "x"}}, 400, "Content-Length is no number"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(post, request_, status, problem):
    response = post(**request_)

    assert response.status_code == status
    assert problem in response.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_before_it_is_in_memory(run, client_of, chunked):
    sent = 0

    async def body():
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b" " * 100

    async def scenario():
        async with client_of(max_body_bytes=1000) as (_, client):
            headers = {} if chunked else {"Content-Length": "100000"}
            return await client.post(INFER, content=body(), headers=headers)

    response = run(scenario())

    assert response.status_code == 413
    assert "1000 bytes" in response.json()["error"]
    assert sent <= (1100 if chunked else 0)


def test_an_input_that_the_model_fails_on_is_answered_and_the_server_goes_on(run, client_of, ask):
    async def scenario():
        async with client_of() as (_, client):
            bad = await client.post(INFER, json=ask(1, POISON, 3))
            return bad, await client.post(INFER, json=ask(1, 2, 3))

    bad, good = run(scenario())

    assert (bad.status_code, bad.json()) == (500, {"error": "the model failed on this input: poison"})
    assert good.status_code == 200


def test_a_full_queue_answers_503_and_when_to_come_back(run, client_of, ask, runtimes, tmp_path):
    slow = fake_package(tmp_path / "slow", width=-1)  # of free size, and so outside the event loop

    async def scenario():
        async with client_of(slow.directory, batching=BatchingConfig(max_queue=1)) as (server, client):
            runtimes.made[0].free.clear()
            began = len(runtimes.made[0].batches)
            running = asyncio.ensure_future(client.post(INFER, json=ask(1)))
            while len(runtimes.made[0].batches) == began:
                await asyncio.sleep(0.001)
            waiting = asyncio.ensure_future(client.post(INFER, json=ask(2)))
            while server.slots[0].version.waiting == 0:
                await asyncio.sleep(0.001)
            refused = await client.post(INFER, json=ask(3))
            runtimes.made[0].free.set()
            return refused, await running, await waiting

    refused, *answered = run(scenario())

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert [response.json()["outputs"][0]["data"] for response in answered] == [[2], [4]]


def test_a_client_that_hangs_up_while_it_waits_is_dropped(run, client_of, ask, runtimes, tmp_path):
    slow = fake_package(tmp_path / "slow", width=-1)

    async def scenario():
        async with client_of(slow.directory) as (server, client):
            fake = runtimes.made[0]
            fake.free.clear()
            began = len(fake.batches)
            running = asyncio.ensure_future(client.post(INFER, json=ask(1)))
            while len(fake.batches) == began:
                await asyncio.sleep(0.001)
            sent = await hang_up(server.app, orjson.dumps(ask(2)))
            fake.free.set()
            await running
            counts = (await client.get("/metrics")).text
            return sent, fake.batches[began:], counts

    sent, batches, counts = run(scenario())

    assert sent == []
    assert batches == [1]
    assert 'code="499"' in counts


async def hang_up(app, body: bytes) -> list:
    """Call the app as a server does whose client sends a request and then disconnects."""
    messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "query_string": b""}
    await app({**scope, "headers": [], "root_path": "", "http_version": "1.1", "scheme": "http"}, receive, send)
    return sent
