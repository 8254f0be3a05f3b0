"""What the serving tests share: a way to run a coroutine, fake runtimes, and a server without a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from production_ml.serving import ModelServer, ServerConfig
from production_ml.testing.serving import FakeRuntime, FakeRuntimes, fake_package


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in a fresh event loop; one that hangs fails."""

    async def in_time(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wait_for(coroutine, timeout=20)

    return lambda coroutine: asyncio.run(in_time(coroutine))


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1, thread_name_prefix="model") as pool:
        yield pool


@pytest.fixture
def runtimes() -> FakeRuntimes:
    return FakeRuntimes()


@pytest.fixture
def client_of(runtimes, tmp_path):
    """A started server of fake models and its client, without a socket between them."""

    @contextlib.asynccontextmanager
    async def start(*models, **settings) -> AsyncIterator[tuple[ModelServer, httpx.AsyncClient]]:
        models = models or [fake_package(tmp_path / "doubler").directory]
        server = ModelServer(models, ServerConfig(**settings), runtimes=runtimes)
        transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
        async with (
            server.app.router.lifespan_context(server.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield server, client

    return start


@pytest.fixture
def ask():
    """One row of `x` as a JSON request."""

    def request(*values: float) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": list(values)}]}

    return request
