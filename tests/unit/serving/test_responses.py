"""A body is read whole, up to the limit, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from production_ml.serving.problems import BodyTooLargeError, BodyTooSlowError
from production_ml.serving.responses import ClientGoneError, read_body


def receive_of(*messages):
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    return receive


def part(body: bytes, *, more: bool) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("cuts", [(b"abcdef",), (b"abc", b"def"), (b"", b"abcdef", b"")])
def test_a_body_is_the_same_however_it_arrives(run, cuts):
    messages = [part(cut, more=index < len(cuts) - 1) for index, cut in enumerate(cuts)]

    assert run(read_body(receive_of(*messages), None, 6)) == b"abcdef"


def test_one_byte_over_the_limit_is_too_much(run):
    with pytest.raises(BodyTooLargeError, match="5 bytes"):
        run(read_body(receive_of(part(b"abc", more=True), part(b"def", more=False)), None, 5))


def test_a_client_that_leaves_in_the_middle_has_sent_nothing(run):
    with pytest.raises(ClientGoneError):
        run(read_body(receive_of(part(b"abc", more=True), {"type": "http.disconnect"}), None, 6))


def test_a_client_that_stops_in_the_middle_is_not_waited_for(run):
    first = receive_of(part(b"abc", more=True))

    async def receive():
        try:
            return await first()
        except RuntimeError:  # nothing more comes
            return await asyncio.Event().wait()

    with pytest.raises(BodyTooSlowError, match="did not arrive") as caught:
        run(read_body(receive, None, 6, limit_seconds=0.01))

    assert caught.value.status == 408
    assert caught.value.headers == {"Connection": "close"}
