"""Who comes while something is lacking waits, and is let in when it is there again."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from production_ml.fault_tolerance.memory_copies.visitors import visitors


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_whoever_comes_while_no_descriptor_is_free_is_let_in_later(listener):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pauses = []

    def free_a_descriptor(seconds: float) -> None:
        pauses.append(seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with socket.create_connection(listener.getsockname()) as friend:
        name = friend.getsockname()
        lowest_free = os.dup(friend.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            visitor = next(visitors(listener, free_a_descriptor))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with visitor:
        assert len(pauses) == 1
        assert visitor.getpeername() == name


def test_there_are_no_more_visitors_when_the_door_is_closed(listener):
    listener.close()

    assert list(visitors(listener)) == []
