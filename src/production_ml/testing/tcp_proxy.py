"""A proxy that stands for a bad network: it cuts connections, delays them, and answers 503 in a busy server's place."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

_CHUNK_BYTES: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
_SLOW_DOWN: Final = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class Fault(Protocol):
    """What happens to one connection."""

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:
        """Called with each piece before it passes on, to the server or back."""
        ...


@dataclass
class Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    passed_bytes: int = 0

    def cut(self) -> None:
        """End it at once, with a reset."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Cut:
    """The connection breaks once so many bytes have passed."""

    after_bytes: int = 0

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:  # noqa: ARG002 - whatever they are
        if link.passed_bytes >= self.after_bytes:
            link.cut()


@dataclass(frozen=True)
class Delay:
    """Each piece comes late."""

    seconds: float

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:  # noqa: ARG002 - each piece
        time.sleep(self.seconds)


@dataclass
class Do:
    """Something else happens, such as the server's death, once so many bytes have passed."""

    action: Callable[[], object]
    after_bytes: int = 0
    is_done: bool = False

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:  # noqa: ARG002 - whatever they are
        if not self.is_done and link.passed_bytes >= self.after_bytes:
            self.is_done = True
            self.action()


@dataclass
class LoseAnswer:
    """The server does what it is asked, but the answer to one request does not arrive. Inject it into many connections.

    Args:
        request: Bytes that stand in the request's head.
    """

    request: bytes
    is_done: bool = False

    def __post_init__(self) -> None:
        self._asked: set[int] = set()

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:
        if not is_answer and self.request in data and not self.is_done:
            self._asked.add(id(link))
        elif is_answer and id(link) in self._asked and not self.is_done:
            self.is_done = True
            link.cut()


class SlowDown:
    """The server is too busy for the first request of the connection."""

    def __call__(self, link: Link, data: bytes, *, is_answer: bool) -> None:  # noqa: ARG002 - whatever they are
        head = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(_SLOW_DOWN)}\r\n"
        with contextlib.suppress(OSError):
            link.client.sendall(head.encode() + b"Connection: close\r\n\r\n" + _SLOW_DOWN)
            link.client.shutdown(socket.SHUT_WR)
            # Read what the client still sends: a reset would overtake the answer.
            link.client.settimeout(0.5)
            while link.client.recv(_CHUNK_BYTES):
                pass
        link.cut()


class TcpProxy:
    """Passes bytes on to a server; each fault that is injected befalls one connection. Close it, or use it in a `with`.

    Args:
        port: The server's, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._faults: deque[Fault] = deque()
        self._open: dict[int, Link] = {}
        self._lock = threading.Lock()
        self.suffered: list[Fault] = []
        """The faults that have befallen a connection."""
        self._acceptor = threading.Thread(target=self._accept, daemon=True, name="tcp-proxy")
        self._acceptor.start()

    @property
    def url(self) -> str:
        """What stands in the place of the server's URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inject(self, *faults: Fault) -> None:
        """Let the next connections suffer these, one each; those that are open end, so that the next come soon."""
        with self._lock:
            self._faults.extend(faults)
            links = list(self._open.values())
        for link in links:
            link.cut()

    def close(self) -> None:
        """End all connections and take no more."""
        with contextlib.suppress(OSError):
            # Closed alone, it would take one connection more: a thread waits in it.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            links = list(self._open.values())
        for link in links:
            link.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True, name="tcp-proxy-link").start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        link = Link(client, server)
        with self._lock:
            fault = self._faults.popleft() if self._faults else None
            if fault is not None:
                self.suffered.append(fault)
            self._open[id(link)] = link
        back = threading.Thread(target=_pump, args=(link, fault, True), daemon=True, name="tcp-proxy-back")
        back.start()
        _pump(link, fault, is_answer=False)
        back.join()
        with self._lock:
            del self._open[id(link)]
        client.close()
        server.close()


def _pump(link: Link, fault: Fault | None, is_answer: bool) -> None:
    source, target = (link.server, link.client) if is_answer else (link.client, link.server)
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            if fault is not None:
                fault(link, data, is_answer=is_answer)
            target.sendall(data)
            link.passed_bytes += len(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
