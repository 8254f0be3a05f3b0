"""Errors of fsspec, botocore and aiohttp become the operating system's, and only what may pass is tried again."""

from __future__ import annotations

import errno

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from production_ml.storage.store_errors import is_beyond_end, is_transient, translate

URL = "https://alice:hunter2@store.example.com"


def answered(code: str, message: str = "Said the server.") -> Exception:
    """What s3fs makes of an answer of S3."""
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": message}}, "PutObject"))


@pytest.mark.parametrize(
    "problem",
    [
        answered("SlowDown"),
        answered("503"),
        answered("InternalError"),
        answered("RequestTimeout"),
        answered("BadDigest"),
        answered("IncompleteBody"),
        answered("SomethingNew"),
        EndpointConnectionError(endpoint_url=URL),
        ReadTimeoutError(endpoint_url=URL),
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ServerDisconnectedError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        FSTimeoutError(),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_what_the_network_or_a_busy_server_caused_may_pass(problem):
    translated = translate(problem, "s3://bucket/run")

    assert is_transient(translated)
    # Which is damage to a reader of checkpoints.
    assert translated.errno != errno.EIO
    assert "hunter2" not in str(translated)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (answered("NoSuchKey"), FileNotFoundError),
        (answered("NoSuchBucket"), FileNotFoundError),
        (FileNotFoundError("a"), FileNotFoundError),
        (answered("AccessDenied"), PermissionError),
        (answered("InvalidAccessKeyId"), PermissionError),
        (NoCredentialsError(), PermissionError),
        (answered("InvalidRange"), OSError),
        (answered("NotImplemented"), OSError),
        (ParamValidationError(report="x"), OSError),
    ],
)
def test_what_will_not_pass_is_not_tried_again(problem, kind):
    translated = translate(problem, "s3://bucket/run")

    assert isinstance(translated, kind)
    assert translated.strerror
    assert not is_transient(translated)


def test_a_mistake_of_the_program_is_no_error_of_the_store():
    assert translate(TypeError("x"), "s3://bucket/run") is None
    assert not is_transient(TypeError("x"))


def test_a_range_beyond_the_end_is_told_from_other_refusals():
    def raised(problem: Exception) -> OSError:
        translated = translate(problem, "s3://bucket/run")
        translated.__cause__ = problem
        return translated

    assert is_beyond_end(raised(answered("InvalidRange")))
    assert not is_beyond_end(raised(answered("NoSuchKey")))
