"""The door: who may come in, and, when the server is about to stop, that nobody should come back on this connection."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from production_ml.serving.problems import RequestError
from production_ml.serving.responses import error_response, header

# A load balancer has no token, and learns nothing here but that the server is up.
_OPEN_PATHS: Final = ("/v2/health/live", "/v2/health/ready")


class Door:
    """ASGI middleware around the whole application.

    Args:
        app: What is behind the door.
        token: What a client has to send; None lets everybody in.
        is_draining: Whether the server is about to stop.
        on_refusal: Told the status of each request that is turned away.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, is_draining: Callable[[], bool], on_refusal: Callable[[int], None]
    ) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._is_draining = is_draining
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._is_draining():
                send = _closing(send)
            if not self._may_enter(scope):
                problem = RequestError(
                    HTTPStatus.UNAUTHORIZED,
                    "the header 'Authorization: Bearer TOKEN' is missing or holds another token",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                self._on_refusal(problem.status)
                await error_response(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in _OPEN_PATHS:
            return True
        given = header(scope, b"authorization") or b""
        # Not ==, whose time tells how many letters were right.
        return hmac.compare_digest(given, self._expected)


def _closing(send: Send) -> Send:
    async def send_and_say_goodbye(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return send_and_say_goodbye
