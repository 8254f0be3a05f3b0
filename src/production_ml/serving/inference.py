"""The inference endpoint, the server's hot path: read, choose a version, parse, queue, encode, answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.types import Receive, Scope, Send

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.serving.batching import Outputs
from production_ml.serving.loaded_version import LoadedVersion
from production_ml.serving.metrics import ServingMetrics
from production_ml.serving.open_inference import (
    JSON_LENGTH_HEADER,
    InferResponse,
    Message,
    encode_response,
    parse_request,
)
from production_ml.serving.problems import RequestError
from production_ml.serving.responses import ClientGoneError, error_response, read_body
from production_ml.serving.served_models import ServedModels

ROUTING_KEY_HEADER: Final = "X-Routing-Key"
"""Any text; requests with the same one are answered from the same slot."""
_JSON_LENGTH: Final = JSON_LENGTH_HEADER.lower().encode()
_ROUTING_KEY: Final = ROUTING_KEY_HEADER.lower().encode()
# Watching a client takes a task of its own, which a quick answer is not worth.
_WATCH_AFTER_SECONDS: Final = 0.05
# Nobody reads it; the status of nginx for a client that went away, so that metrics tell it apart.
_CLIENT_GONE: Final = 499


class InferEndpoint:
    """`POST /v2/models/{model}[/versions/{version}]/infer`, as a bare ASGI application.

    Starlette's Request and Response would cost as much as a small model does.
    """

    def __init__(
        self, models: ServedModels, metrics: ServingMetrics, *, max_body_bytes: int, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self._clock.monotonic_seconds()
        version: LoadedVersion | None = None
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        try:
            headers = _read_headers(scope)
            body = await read_body(receive, headers.content_length, self._max_body_bytes)
            path = scope["path_params"]
            version = self._models.choose(path["model"], path.get("version"), headers.routing_key).version
            message = await _answer(version, body, headers.json_length, receive)
            await _send(message, send)
            status = int(HTTPStatus.OK)
        except RequestError as problem:
            status = problem.status
            await error_response(problem)(scope, receive, send)
        except ClientGoneError:
            status = _CLIENT_GONE
        finally:
            if version is None:
                self._metrics.count_refusal(status)
            else:
                version.metrics.observe_request(status, self._clock.monotonic_seconds() - began)


@dataclass(slots=True)
class _Headers:
    """The headers that matter here."""

    content_length: bytes | None = None
    json_length: str | None = None
    routing_key: bytes | None = None


def _read_headers(scope: Scope) -> _Headers:
    found = _Headers()
    for name, value in scope["headers"]:
        if name == b"content-length":
            found.content_length = value
        elif name == _JSON_LENGTH:
            found.json_length = value.decode("latin-1")
        elif name == _ROUTING_KEY:
            found.routing_key = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a compressed body is not understood; send it plain")
    return found


async def _answer(version: LoadedVersion, body: bytes, json_length: str | None, receive: Receive) -> Message:
    request = parse_request(body, json_length, version.inputs, version.outputs)
    # No await since the version was chosen: a swap cannot come in between.
    answer = version.submit(request.inputs, request.rows)
    # A model that runs in the event loop has answered before anybody could see the client go.
    outputs = await (answer if version.in_loop else _unless_client_leaves(answer, receive))
    named = dict(zip(version.output_names, outputs, strict=True))
    response = InferResponse(version.model, version.version, named, request.id, version.source.alias)
    return encode_response(response, request.outputs)


async def _send(message: Message, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in message.headers.items()]
    headers.append((b"content-length", str(len(message.body)).encode()))
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
    await send({"type": "http.response.body", "body": message.body})


async def _unless_client_leaves(answer: asyncio.Future[Outputs], receive: Receive) -> Outputs:
    watch = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, _start_watching, answer, receive)
    try:
        return await answer
    finally:
        watch.cancel()


def _start_watching(answer: asyncio.Future[Outputs], receive: Receive) -> None:
    task = asyncio.ensure_future(_withdraw_when_gone(answer, receive))
    # This also keeps the task: the event loop itself holds tasks only weakly.
    answer.add_done_callback(lambda _: task.cancel())


async def _withdraw_when_gone(answer: asyncio.Future[Outputs], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not answer.done():
        answer.set_exception(ClientGoneError())
