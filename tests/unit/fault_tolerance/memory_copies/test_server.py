"""A keeper tells and lends while its trainer lives, and hands over once it is dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from production_ml.fault_tolerance.memory_copies.kept import KeptCopies
from production_ml.fault_tolerance.memory_copies.server import KeeperServer, TrainerLife
from production_ml.fault_tolerance.memory_copies.visit import (
    GoneError,
    ask,
    borrow,
    dismiss_others,
    forget,
    is_listening,
    take_over,
    what_keepers_hold,
)


class Kept:
    """A keeper's door, and what the test does to the keeper."""

    def __init__(self, place, *, local_rank=0):
        self.copies = KeptCopies(1)
        self.read, self._write = os.pipe()
        self.life = TrainerLife([self.read])
        self.listener, self.name = place.listen()
        told = {"local_rank": local_rank, "door": None}
        self.server = KeeperServer(self.listener, self.copies, life=self.life, await_hashed=self.note_wait, place=told)
        self.waits = 0
        self.server.start()

    def note_wait(self):
        self.waits += 1

    def lose_trainer(self):
        os.close(self._write)
        self.life.end()

    def is_dismissed(self):
        try:
            return os.eventfd_read(self.server.is_dismissed) == 1
        except BlockingIOError:
            return False


@pytest.fixture
def keeper(place):
    return Kept(place)


@pytest.fixture
def socket_of(place):
    return lambda keeper: place.path / keeper.name


def test_it_tells_what_it_holds(keeper, place, copy_of):
    keeper.copies.add(copy_of(3, save_id="aa"))

    [(_, told)] = what_keepers_hold(place)

    assert told["copies"] == [{"step": 3, "save_id": "aa", "rank": 0, "world_size": 1, "created_at": 1003.0}]


def test_after_its_trainers_death_it_tells_of_the_copy_in_the_making_too(keeper, place):
    list(what_keepers_hold(place))
    assert keeper.waits == 0

    keeper.lose_trainer()
    list(what_keepers_hold(place))

    assert keeper.waits == 1


def test_it_lends_an_image(keeper, socket_of, copy_of):
    keeper.copies.add(copy := copy_of(3, save_id="aa"))

    record, descriptor = borrow(socket_of(keeper), "aa", 0)

    assert record == copy.record
    assert os.pread(descriptor, copy.size_bytes, 0) == os.pread(copy.descriptor, copy.size_bytes, 0)
    os.close(descriptor)


def test_what_it_has_not_got_is_gone(keeper, place, socket_of):
    with pytest.raises(GoneError):
        borrow(socket_of(keeper), "aa", 0)
    with pytest.raises(GoneError):
        borrow(Path(place.path, "nobody.sock"), "aa", 0)


def test_it_forgets_when_told(keeper, place, copy_of):
    keeper.copies.add(copy_of(3, save_id="aa"))

    forget(place, ["aa"])

    assert keeper.copies.all() == []


def test_it_hands_nothing_over_while_its_trainer_lives(keeper, place, copy_of):
    keeper.copies.add(copy_of(3))

    assert list(take_over(place, "me.sock", 0)) == []
    assert not keeper.is_dismissed()


def test_it_hands_all_over_to_whoever_has_its_trainers_place_next(keeper, place, copy_of):
    keeper.copies.add(own := copy_of(3))
    keeper.copies.add(replica := copy_of(3, rank=1, world_size=2, is_replica=True))
    keeper.lose_trainer()

    assert list(take_over(place, "me.sock", 1)) == []
    taken = list(take_over(place, "me.sock", 0))
    ask(place.path / keeper.name, {"kind": "list"})

    assert [(record, is_replica) for record, _, is_replica in taken] == [(own.record, False), (replica.record, True)]
    assert keeper.is_dismissed()


def test_a_successor_that_dies_before_it_has_all_leaves_it_in_office(keeper, place, copy_of):
    keeper.copies.add(copy_of(3))
    keeper.lose_trainer()

    successor = take_over(place, "me.sock", 0)
    next(successor)
    successor.close()

    assert next(what_keepers_hold(place))[1]["copies"] != []
    assert not keeper.is_dismissed()


def test_it_is_dismissed_only_after_its_trainers_death(keeper, place):
    dismiss_others(place, "me.sock")
    assert not keeper.is_dismissed()

    keeper.lose_trainer()
    dismiss_others(place, keeper.name)
    assert not keeper.is_dismissed()

    dismiss_others(place, "me.sock")
    assert keeper.is_dismissed()


def test_the_name_of_a_keeper_that_was_killed_is_no_keeper(place):
    listener, name = place.listen()
    assert is_listening(place.path / name)

    listener.close()

    assert not is_listening(place.path / name)
    assert list(what_keepers_hold(place)) == []
