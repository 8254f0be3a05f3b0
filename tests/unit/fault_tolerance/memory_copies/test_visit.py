"""A visitor borrows what a keeper of this host holds, and knows a dead keeper from a live one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from production_ml.fault_tolerance.memory_copies.visit import (
    GoneError,
    borrow,
    forget,
    is_listening,
    what_keepers_hold,
)


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


def test_the_name_of_a_keeper_that_was_killed_is_no_keeper(place):
    listener, name = place.listen()
    assert is_listening(place.path / name)

    listener.close()

    assert not is_listening(place.path / name)
    assert list(what_keepers_hold(place)) == []
