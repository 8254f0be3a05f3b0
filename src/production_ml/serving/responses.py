"""HTTP answers in JSON, and the few things that an endpoint needs to know about a request."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from production_ml.core.structured_logging import log_event
from production_ml.serving.problems import BodyTooLargeError, BodyTooSlowError, InvalidRequestError, RequestError

# A client that stops in the middle would keep what it has sent in our memory for ever.
_BODY_SECONDS: Final = 60.0
_LOGGER = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The client has closed the connection: nobody is there to be answered."""


def json_response(content: Any, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def error_response(problem: RequestError) -> Response:
    """What was wrong, in the protocol's form."""
    return json_response({"error": str(problem)}, problem.status, problem.headers)


async def http_error(request: Request, problem: Exception) -> Response:
    """For what the router refuses: an unknown path, a wrong method."""
    if not isinstance(problem, HTTPException):
        raise problem
    message = f"{request.method} {request.url.path}: {problem.detail}"
    return json_response({"error": message}, problem.status_code, dict(problem.headers or {}))


async def internal_error(request: Request, problem: Exception) -> Response:
    """For a mistake of ours: its text may hold what a client must not see, so it goes to the log alone."""
    message = f"{request.method} {request.url.path} was answered with 500: {problem!r}"
    log_event(_LOGGER, "internal_error", message, level=logging.ERROR)
    return json_response({"error": "internal error; the server's log has the details"}, 500)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(
    receive: Receive, content_length: bytes | None, limit_bytes: int, limit_seconds: float = _BODY_SECONDS
) -> bytes:
    """The request's body, of which never more than the limit is kept, and not for longer than it may take to arrive.

    Raises:
        BodyTooLargeError: It is larger, or says that it will be.
        BodyTooSlowError: It is not complete in time.
        ClientGoneError: The client closed the connection before it had sent all.
        InvalidRequestError: The body's length is no number.
    """
    if content_length is not None and _length(content_length) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)
    try:
        async with asyncio.timeout(limit_seconds):
            return await _read_parts(receive, limit_bytes)
    except TimeoutError:
        raise BodyTooSlowError(limit_seconds) from None


async def _read_parts(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise InvalidRequestError("Content-Length is no number")
    return int(text)
