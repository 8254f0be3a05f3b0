"""What can be wrong with one request: each problem knows its HTTP status and says what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from production_ml.core.errors import ServingError

# A message quotes what the client sent, which may be megabytes.
_LONGEST: Final = 500


class RequestError(ServingError):
    """A request that gets an error for an answer; the server and the other requests are not concerned.

    Attributes:
        status: The HTTP status of the answer.
        headers: Further headers of the answer.
    """

    def __init__(self, status: HTTPStatus, problem: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = dict(headers or {})
        super().__init__(problem if len(problem) <= _LONGEST else problem[:_LONGEST] + " …")


class InvalidRequestError(RequestError):
    """The request does not follow the protocol, or does not fit the model."""

    def __init__(self, problem: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, problem)


class UnknownModelError(RequestError):
    """There is no such model, or no such version of it."""

    def __init__(self, what: str, known: Iterable[str]) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, f"{what} is not served here; known: {', '.join(known)}")


class BodyTooLargeError(RequestError):
    """The body is larger than the server takes."""

    def __init__(self, limit_bytes: int) -> None:
        problem = f"the body is larger than {limit_bytes} bytes; send fewer rows at a time, or binary data"
        super().__init__(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)


class BodyTooSlowError(RequestError):
    """The body did not arrive in time."""

    def __init__(self, limit_seconds: float) -> None:
        problem = f"the body did not arrive within {limit_seconds:g} s; send fewer rows at a time"
        super().__init__(HTTPStatus.REQUEST_TIMEOUT, problem, headers={"Connection": "close"})


class QueueFullError(RequestError):
    """As many requests are waiting for this version as are allowed to."""

    def __init__(self, waiting: int) -> None:
        problem = f"{waiting} requests are waiting already; try again in a moment"
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, problem, headers={"Retry-After": "1"})


class ModelFailedError(RequestError):
    """The model raised on this request, although it ran alone."""

    def __init__(self, problem: BaseException) -> None:
        first_line = str(problem).strip().partition("\n")[0]
        super().__init__(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model failed on this input: {first_line}")
