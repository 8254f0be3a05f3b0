"""uvicorn on uvloop and httptools, made to stop without cutting off a request."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import httptools  # noqa: F401 - uvicorn imports both by name, and only when it starts
import uvicorn
import uvloop  # noqa: F401
from starlette.types import ASGIApp

from production_ml.core.errors import ServingError

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_BACKLOG: Final = 2048
# Longer than load balancers and client pools keep an idle connection, so that they are the ones to close it.
_KEEP_ALIVE_SECONDS: Final = 75
# How long a client between two requests has to come and hear that the connection is closing.
_GOODBYE_SECONDS: Final = 0.25
# How long a request that is still being sent may take to arrive.
_LAST_BODIES_SECONDS: Final = 5
_POLL_SECONDS: Final = 0.01
_LAST_ANSWERS_SECONDS: Final = 20
# Less than the 30 s after which Kubernetes kills.
_LONGEST_STOP_SECONDS: Final = 25.0


def listen(host: str, port: int) -> socket.socket:
    """Reserve an address; nobody can connect before the server is started on it.

    Raises:
        ServingError: The port is taken or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise _cannot_listen(host, port, problem) from problem
    try:
        # A port in TIME_WAIT counts as free; one with a live listener does not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as problem:
        listener.close()
        raise _cannot_listen(host, port, problem) from problem
    return listener


def url_of(listener: socket.socket) -> str:
    """How a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison, nothing is bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


class HttpServer(uvicorn.Server):
    """Serves one application until SIGTERM or SIGINT, then stops in an orderly way and returns.

    Args:
        app: The application.
        listener: Where; closed when the server stops.
        on_ready: Called when connections are accepted.
        on_stopping: Called when no more are; from then on the application should answer with `Connection: close`.
        on_hangup: Called on SIGHUP.
        on_stuck: Called when a second signal comes or the stop takes too long; has to end the process, since a thread
            that hangs cannot be ended.
        longest_stop_seconds: What too long is.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None],
        on_hangup: Callable[[], None],
        on_stuck: Callable[[], None],
        longest_stop_seconds: float = _LONGEST_STOP_SECONDS,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
            )
        )
        self._listener = listener
        self._on_ready = on_ready
        self._on_stopping = on_stopping
        self._on_hangup = on_hangup
        self._on_stuck = on_stuck
        self._longest_stop_seconds = longest_stop_seconds

    def serve_forever(self) -> None:
        """Block until a signal comes and what was under way is done."""
        self.run(sockets=[self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so.

        Raises:
            ServingError: Another process reserved the port at the same time, and was the first to listen.
        """
        try:
            await super().startup(sockets)
        except OSError as problem:
            host, port = self._listener.getsockname()[:2]
            raise _cannot_listen(host, port, problem) from problem
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections; say goodbye on those there are; wait for their requests.

        uvicorn alone closes a connection between two requests at once, and the next request may be on its way.
        """
        loop = asyncio.get_running_loop()
        loop.call_later(self._longest_stop_seconds, self._on_stuck)
        for server in self.servers:
            server.close()
        self._on_stopping()
        deadline = loop.time() + _GOODBYE_SECONDS
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        loop.call_later(_LAST_BODIES_SECONDS, self._hang_up_on_unsent_requests)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, these signals end in a return, and so in exit code 0; a second one does not wait."""
        loop = asyncio.get_running_loop()
        try:
            for number in _STOP_SIGNALS:
                loop.add_signal_handler(number, self._stop)
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        except (RuntimeError, ValueError):
            # Not the main thread: whoever started it there sets should_exit.
            yield
            return
        try:
            yield
        finally:
            for number in (*_STOP_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _hang_up_on_unsent_requests(self) -> None:
        """A client that stalls in the middle of a request must not keep the server from ending."""
        for connection in list(self.server_state.connections):
            cycle: Any = getattr(connection, "cycle", None)
            if cycle is not None and cycle.more_body:
                connection.transport.close()

    def _stop(self) -> None:
        if self.should_exit:
            self._on_stuck()
        self.should_exit = True


def _cannot_listen(host: str, port: int, problem: OSError) -> ServingError:
    reason: Any = problem.strerror or problem
    return ServingError(
        f"The server cannot listen on {host} port {port}: {reason}.",
        meaning="Nothing is served.",
        cure="Stop the process that has the port, or choose another with --port (0 picks a free one).",
    )
