"""A message comes as it was sent, with its descriptors, or not at all."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from production_ml.fault_tolerance.saving.writer import messages


@pytest.fixture
def ends():
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def test_a_message_comes_with_its_descriptors(ends):
    read, write = os.pipe()
    messages.send(ends[0], {"kind": "x", "n": [1, None]}, [write])

    message, [descriptor] = messages.receive(ends[1])
    os.write(descriptor, b"hello")

    assert message == {"kind": "x", "n": [1, None]}
    assert os.read(read, 5) == b"hello"


def test_an_end_in_the_middle_is_no_message(ends):
    ends[0].sendall(struct.pack("<Q", 10) + b"{")
    ends[0].close()

    assert messages.receive(ends[1]) is None


def test_a_message_that_is_too_long_is_not_read(ends):
    ends[0].sendall(struct.pack("<Q", 1001))

    with pytest.raises(ValueError, match="1001"):
        messages.receive(ends[1], most_bytes=1000)
