"""Only who knows the token comes in, and nobody learns it here."""

from __future__ import annotations

import pytest

PATHS = ("/v2", "/v2/models/doubler", "/metrics", "/nowhere")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer s3cre"},
        {"Authorization": "Bearer s3crett"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
    ],
)
def test_without_the_token_nothing_is_told_but_health(run, client_of, ask, headers):
    async def scenario():
        async with client_of(token="s3cret") as (_, client):
            refused = [await client.get(path, headers=headers) for path in PATHS]
            refused.append(await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3), headers=headers))
            health = [await client.get(f"/v2/health/{what}", headers=headers) for what in ("live", "ready")]
            return refused, health

    refused, health = run(scenario())

    assert {response.status_code for response in refused} == {401}
    assert {response.headers["www-authenticate"] for response in refused} == {"Bearer"}
    assert all("s3cret" not in response.text for response in refused)
    assert {response.status_code for response in health} == {200}


def test_with_the_token_everything_is_open_and_refusals_are_counted(run, client_of, ask):
    async def scenario():
        async with client_of(token="s3cret") as (_, client):
            await client.get("/v2")
            client.headers["Authorization"] = "Bearer s3cret"
            answer = await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3))
            return answer, await client.get("/metrics")

    answer, metrics = run(scenario())

    assert answer.status_code == 200
    assert 'code="401",model="",version=""} 1.0' in metrics.text


def test_a_server_about_to_stop_says_goodbye_on_each_connection(run, client_of, ask):
    async def scenario():
        async with client_of() as (server, client):
            before = await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3))
            server._stop_soon()
            after = await client.post("/v2/models/doubler/infer", json=ask(1, 2, 3))
            return before, after, await client.get("/v2/health/ready")

    before, after, ready = run(scenario())

    assert "connection" not in before.headers
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
