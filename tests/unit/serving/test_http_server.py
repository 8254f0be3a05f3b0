"""An address is reserved before models are loaded, and refused in words where it cannot be."""

from __future__ import annotations

import asyncio
import socket

import pytest

from production_ml.core.errors import ServingError
from production_ml.serving.http_server import HttpServer, listen, url_of


def test_a_port_in_use_is_refused_with_a_cure():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match=f"127.0.0.1 port {port}: Address already in use") as caught:
            listen("127.0.0.1", port)

    assert "--port" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(ServingError, match=f"cannot listen on {host}"):
        listen(host, 0)


def test_nobody_can_connect_before_the_server_is_started():
    with listen("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname())


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_the_url_is_one_that_this_machine_can_use(host, shown):
    with listen(host, 0) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


def test_a_stop_that_hangs_is_given_up():
    told = []

    async def app(_scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        while not told:  # the batch that hangs
            await asyncio.sleep(0.001)
        await send({"type": "lifespan.shutdown.complete"})

    with listen("127.0.0.1", 0) as listener:
        server = HttpServer(
            app,
            listener,
            on_ready=lambda: setattr(server, "should_exit", True),
            on_stopping=lambda: None,
            on_hangup=lambda: None,
            on_stuck=lambda: told.append("stuck"),
            longest_stop_seconds=0.01,
        )
        server.serve_forever()

    assert told == ["stuck"]
