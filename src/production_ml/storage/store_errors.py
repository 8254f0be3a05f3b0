"""What the errors of fsspec, botocore and aiohttp mean, in the operating system's words: `OSError`s with an errno."""

from __future__ import annotations

import errno
from typing import Any, Final

from production_ml.core.redaction import redact_text

_MAY_PASS: Final = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
}
# Damaged or cut off on their way to the server, which noticed it.
_LOST_IN_TRANSIT: Final = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_NETWORK: Final = {
    ("botocore", "ConnectionError"),
    ("botocore", "HTTPClientError"),
    ("aiohttp", "ClientError"),
    ("azure", "ServiceRequestError"),
    ("azure", "ServiceResponseError"),
}
_TOO_MANY_OR_TOO_LATE: Final = {408, 429}


def is_transient(problem: Exception) -> bool:
    """Whether a translated error may pass by itself."""
    return isinstance(problem, OSError) and problem.errno in _MAY_PASS


def translate(problem: Exception, address: str) -> OSError | None:
    """What went wrong at `address`; None where it is not an error of the store, but of the program.

    s3fs gives an errno to a part of what servers answer, and lets the network's errors through as they come.
    """
    number = _number(problem)
    if number is None:
        return None
    # OSError makes itself the subclass that belongs to the number: FileNotFoundError, PermissionError, …
    return OSError(number, _reason(problem), address)


def is_beyond_end(problem: OSError) -> bool:
    """Whether a translated error says that the bytes asked for begin where the object ends, or later."""
    return problem.__cause__ is not None and _code(problem.__cause__) in ("InvalidRange", "416")


def _number(problem: Exception) -> int | None:
    if _is_without_credentials(problem) or isinstance(problem, PermissionError):
        return errno.EACCES
    if isinstance(problem, FileNotFoundError):
        return errno.ENOENT
    if _code(problem) in _LOST_IN_TRANSIT:
        return errno.EREMOTEIO
    status = _status(problem)
    if status is not None and (status >= 500 or status in _TOO_MANY_OR_TOO_LATE):
        return errno.EREMOTEIO
    if isinstance(problem, TimeoutError):
        return errno.ETIMEDOUT
    if isinstance(problem, OSError):
        # EIO is kept for lost bytes; here it says that a server answered something that has no number.
        return problem.errno if problem.errno not in (None, errno.EIO) else errno.EREMOTEIO
    families = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(problem).__mro__}
    if families & _NETWORK:
        return errno.ECONNABORTED
    return errno.EINVAL if any(module == "botocore" for module, _ in families) else None


def _is_without_credentials(problem: Exception) -> bool:
    return any("Credential" in kind.__name__ for kind in type(problem).__mro__)


def _reason(problem: Exception) -> str:
    text = (isinstance(problem, OSError) and problem.strerror) or str(problem) or type(problem).__name__
    return redact_text(text.strip().rstrip("."))


def _code(problem: BaseException) -> str:
    """S3's own word for it."""
    response: Any = getattr(problem.__cause__ or problem, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status(problem: Exception) -> int | None:
    for name in ("status_code", "status", "code"):
        status = getattr(problem, name, None)
        if isinstance(status, int):
            return status
    return None
