"""What the server says about itself is what a client of the protocol expects."""

from __future__ import annotations

import pytest

from production_ml import __version__
from production_ml.testing.serving import fake_package


@pytest.fixture
def get(run, client_of):
    def fetch(*paths: str):
        async def scenario():
            async with client_of() as (_, client):
                return [await client.get(path) for path in paths]

        return run(scenario())

    return fetch


def test_the_server_tells_its_name_and_extensions(get):
    assert get("/v2")[0].json() == {
        "name": "production_ml",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }


def test_a_server_with_its_models_loaded_is_alive_and_ready(get):
    live, ready = get("/v2/health/live", "/v2/health/ready")

    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


def test_a_model_tells_its_interface(get, tmp_path):
    version = fake_package(tmp_path / "doubler").content_hash[:12]

    whole, pinned = get("/v2/models/doubler", f"/v2/models/doubler/versions/{version}")

    assert whole.json() == {
        "name": "doubler",
        "versions": [version],
        "platform": "fake",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert pinned.json() == whole.json()


def test_a_model_is_ready_or_unknown(get, tmp_path):
    version = fake_package(tmp_path / "doubler").content_hash[:12]

    found = get(
        "/v2/models/doubler/ready",
        f"/v2/models/doubler/versions/{version}/ready",
        "/v2/models/digits/ready",
        "/v2/models/digits",
        "/v2/models/doubler/versions/9",
    )

    assert [response.status_code for response in found] == [200, 200, 404, 404, 404]
    assert found[0].json() == {"name": "doubler", "ready": True}
    assert "known: doubler" in found[2].json()["error"]


def test_what_there_is_not_is_answered_in_json(get):
    missing, method = get("/v3/models", "/v2/models/doubler/infer")

    assert (missing.status_code, missing.json()) == (404, {"error": "GET /v3/models: Not Found"})
    assert method.status_code == 405
    assert "Method Not Allowed" in method.json()["error"]


def test_requests_show_up_in_the_metrics_and_client_text_does_not(run, client_of, ask):
    async def scenario():
        async with client_of() as (_, client):
            await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3))
            await client.post("/v2/models/doubler/infer", json=ask(1, 2))
            await client.post("/v2/models/made-up-by-a-client/infer", json=ask(1))
            return (await client.get("/metrics")).text

    text = run(scenario())

    assert 'serving_requests_total{code="200",model="doubler"' in text
    assert 'serving_requests_total{code="400",model="doubler"' in text
    assert 'serving_requests_total{code="404",model="",version=""} 1.0' in text
    assert "serving_batch_rows_bucket" in text
    assert "serving_queue_depth" in text
    assert "made-up" not in text


def test_a_mistake_of_ours_is_answered_without_its_details(run, client_of, ask, runtimes):
    async def scenario():
        async with client_of() as (server, client):
            del server.slots[0].version.output_names
            response = await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3))
            return response, (await client.get("/metrics")).text

    response, metrics = run(scenario())

    assert response.status_code == 500
    assert 'serving_requests_total{code="500",model="doubler"' in metrics
    assert response.json() == {"error": "internal error; the server's log has the details"}
