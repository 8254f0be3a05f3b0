"""Who knows the token leaves copies and fetches them; damage on the way is noticed, and strangers get nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.memory_copies import peer_door
from production_ml.fault_tolerance.memory_copies.peer_door import PeerDoor, send_image, verify
from production_ml.fault_tolerance.memory_copies.peer_visit import fetch, visit
from production_ml.fault_tolerance.memory_copies.record import decode_record
from production_ml.fault_tolerance.memory_copies.visit import GoneError
from production_ml.fault_tolerance.saving.writer import messages


def flip(descriptor: int, position: int) -> None:
    byte = os.pread(descriptor, 1, position)[0]
    os.pwrite(descriptor, bytes([byte ^ 4]), position)


def test_a_copy_that_was_damaged_on_the_way_is_not_taken_in(peer, copy_of):
    copy = copy_of(3)
    flip(copy.descriptor, copy.size_bytes - 1)

    with visit(peer.door) as channel:
        messages.send(channel, {"kind": "offer", "record": copy.record, "held": None})
        send_image(channel, copy)
        answer, _ = messages.receive(channel)

    assert answer["kind"] == "damaged"
    with pytest.raises(GoneError):
        fetch(peer.door, copy.save_id, 0, is_record_only=True)


def test_a_transfer_that_breaks_off_leaves_nothing(peer, copy_of):
    copy = copy_of(3)

    with visit(peer.door) as channel:
        messages.send(channel, {"kind": "offer", "record": copy.record, "held": None})
        channel.sendall(bytes(100))

    with pytest.raises(GoneError):
        fetch(peer.door, copy.save_id, 0, is_record_only=True)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", struct.pack("<Q", 1 << 60), struct.pack("<Q", 4) + b"1234"]
)
def test_whatever_a_stranger_says_it_is_hung_up_on_and_others_are_served(peer, copy_of, said):
    with socket.create_connection((peer.door.host, peer.door.port), timeout=10) as stranger:
        stranger.sendall(said)
        assert hung_up(stranger)

    with visit(peer.door) as channel:
        messages.send(channel, {"kind": "fetch", "save_id": "aa", "rank": 0, "is_record_only": True})
        assert messages.receive(channel)[0] == {"kind": "gone"}


def knock(peer: PeerDoor) -> socket.socket:
    return socket.create_connection((peer.door.host, peer.door.port), timeout=30)


def is_served(peer: PeerDoor) -> bool:
    with visit(peer.door) as channel:
        channel.settimeout(20)
        messages.send(channel, {"kind": "fetch", "save_id": "aa", "rank": 0, "is_record_only": True})
        return messages.receive(channel)[0] == {"kind": "gone"}


@pytest.mark.parametrize("count", [70, 300])
def test_strangers_who_say_nothing_keep_no_friend_out(peer, count, monkeypatch):
    monkeypatch.setattr(peer_door, "_HELLO_SECONDS", 100.0)  # longer than the friend has patience
    with contextlib.ExitStack() as strangers:
        for _ in range(count):
            strangers.enter_context(knock(peer))

        assert is_served(peer)


def test_a_byte_now_and_then_does_not_keep_a_stranger_at_the_door(peer, monkeypatch):
    monkeypatch.setattr(peer_door, "_HELLO_SECONDS", 0.5)
    said = 0

    with knock(peer) as stranger, contextlib.suppress(ConnectionError):
        stranger.settimeout(0.1)  # far below the limit for all of it
        stranger.sendall(struct.pack("<Q", 1000))
        while said < 200:
            stranger.sendall(b" ")
            said += 1
            with contextlib.suppress(TimeoutError):
                if stranger.recv(1) == b"":
                    break

    assert said < 200


def hung_up(channel: socket.socket) -> bool:
    try:
        return channel.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_flipped_bit_is_damage(copy_of, rng):
    copy = copy_of(3)
    flip(copy.descriptor, rng.randrange(copy.size_bytes))

    with pytest.raises(DamagedCheckpointError):
        verify(decode_record(copy.record, step=3), copy.descriptor)
