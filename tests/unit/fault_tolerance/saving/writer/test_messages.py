"""A message and the descriptors with it arrive whole, in order, or the other side is known to be gone."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from production_ml.fault_tolerance.saving.writer import messages

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.mark.parametrize("text", ["", "ä\ud800", "x" * 5_000_000], ids=["empty", "not ASCII", "larger than a buffer"])
def test_messages_come_as_they_were_sent_one_by_one(pair, text):
    sent = [{"kind": "a", "text": text}, {"kind": "b", "number": float("inf")}]
    sender = threading.Thread(target=lambda: [messages.send(pair[0], message) for message in sent])
    sender.start()

    assert [messages.receive(pair[1]), messages.receive(pair[1])] == [(message, []) for message in sent]
    sender.join()


def test_a_descriptor_comes_with_its_message_and_is_closed_in_programs_that_are_started(pair, tmp_path):
    with (tmp_path / "file").open("w") as file:
        messages.send(pair[0], {"kind": "a"}, [file.fileno(), file.fileno()])
    messages.send(pair[0], {"kind": "b"})

    message, descriptors = messages.receive(pair[1])
    os.write(descriptors[0], b"hello")

    assert message == {"kind": "a"}
    assert (tmp_path / "file").read_text() == "hello"
    assert not any(map(os.get_inheritable, descriptors))
    assert messages.receive(pair[1]) == ({"kind": "b"}, [])
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("begun", [b"", b"\x05\0", b"\x05\0\0\0\0\0\0\0", b"\x05\0\0\0\0\0\0\0{}"])
def test_a_side_that_ends_amid_a_message_is_gone(pair, begun):
    pair[0].sendall(begun)
    pair[0].close()

    assert messages.receive(pair[1]) is None


def test_to_send_to_a_side_that_is_gone_is_an_error(pair):
    pair[1].close()

    with pytest.raises(OSError, match="Broken pipe"):
        messages.send(pair[0], {"kind": "a"})


def test_a_message_that_is_too_long_is_not_read(pair):
    pair[0].sendall((1001).to_bytes(8, "little"))

    with pytest.raises(ValueError, match="1001"):
        messages.receive(pair[1], most_bytes=1000)
