"""A copy that is left with a peer comes back bit by bit, and what cannot be left is answered for."""

from __future__ import annotations

import os

import pytest

from production_ml.fault_tolerance.memory_copies.kept import KeptCopies
from production_ml.fault_tolerance.memory_copies.peer_door import verify
from production_ml.fault_tolerance.memory_copies.peer_visit import CopySender, fetch
from production_ml.fault_tolerance.memory_copies.record import decode_record
from production_ml.fault_tolerance.memory_copies.visit import GoneError


def test_a_copy_is_left_with_a_peer_and_fetched_from_it_bit_by_bit(peer, copy_of):
    copies = KeptCopies(1)
    copies.add(copy := copy_of(3, save_id="aa", slot=1))
    sender = CopySender(copies)
    sender.introduce(peer.door, held=None)

    sender.send("aa", 0)
    record, descriptor = fetch(peer.door, "aa", 0, is_record_only=False)

    assert record == copy.record
    assert os.pread(descriptor, copy.size_bytes, 0) == os.pread(copy.descriptor, copy.size_bytes, 0)
    verify(decode_record(record, step=3), descriptor)
    os.close(descriptor)


def test_who_does_not_know_the_token_is_told_nothing(peer, copy_of):
    stranger = peer.door._replace(token="0" * 32)

    with pytest.raises(GoneError):
        fetch(stranger, copy_of(3).save_id, 0, is_record_only=True)


def test_without_a_peer_nothing_is_sent(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(3, save_id="aa", slot=1))

    with pytest.raises(GoneError, match="no peer"):
        CopySender(copies).send("aa", 0)


def test_a_send_that_fails_costs_the_peer_nothing_that_has_arrived_everywhere(peer, copy_of):
    copies = KeptCopies(1)
    for step, save_id in ((1, "aa"), (2, "bb"), (3, "cc")):
        copies.add(copy_of(step, save_id=save_id, slot=step))
    sender = CopySender(copies)
    sender.introduce(peer.door, held=None)
    sender.send("aa", 0)

    sender.introduce(peer.door, held="aa")
    sender.send("bb", 0)  # another rank's did not arrive
    sender.introduce(peer.door, held="aa")
    sender.send("cc", 0)

    fetch(peer.door, "aa", 0, is_record_only=True)
    fetch(peer.door, "cc", 0, is_record_only=True)
    with pytest.raises(GoneError):
        fetch(peer.door, "bb", 0, is_record_only=True)
