"""Ranks hear of each other by files that are there whole or not at all, and ask for no name before it is listed."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave
from production_ml.fault_tolerance.checkpoint_format.save_lock import LOCK_FILE


@pytest.fixture
def save(directory) -> Iterator[DirectorySave]:
    lock = directory.begin(1, "00ff")
    yield directory.incomplete(1, "00ff")
    lock.release()


@pytest.fixture
def image() -> memoryview:
    """A page of memory that begins at a page."""
    image = memoryview(mmap.mmap(-1, 4096))
    image[:5] = b"bytes"
    return image


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_shard_has_the_name_that_its_rank_is_told(save, image):
    name = save.write_shard(3, image, 5)

    assert name == "rank-00003.safetensors"
    assert (save.path / name).read_bytes() == b"bytes"


def test_what_ranks_tell_comes_back_by_rank_and_the_last_word_counts(save):
    save.write_part(1, b"one")
    save.write_part(1, b"one again")
    save.write_part(12, b"twelve")

    assert save.read_parts(range(1, 13)) == {1: b"one again", 12: b"twelve"}
    assert save.read_parts([2]) == {}


def test_a_part_is_not_asked_for_by_name_before_it_is_listed(save, touched):
    """An NFS client remembers for half a minute and more that a name was not there."""
    with touched(save.path) as paths:
        assert save.read_parts([1]) == {}
    assert paths == {save.path}

    save.write_part(1, b"one")
    with touched(save.path) as paths:
        save.read_parts([1, 2])
    assert paths == {save.path, save.path / "rank-00001.part.json"}


def test_a_rank_takes_back_its_shard_and_nothing_else_and_may_do_so_twice(save, image):
    for rank in (1, 2):
        save.write_shard(rank, image, 5)
        save.write_part(rank, b"{}")

    save.withdraw(1)
    save.withdraw(1)

    kept = ["rank-00001.part.json", "rank-00002.part.json", "rank-00002.safetensors", "save.lock"]
    assert names_in(save.path) == kept


def test_what_was_told_is_cleared_away_and_shards_are_not(save, image):
    save.write_shard(1, image, 5)
    save.write_part(1, b"{}")

    save.clear_parts(3)  # a rank that told nothing is no error

    assert names_in(save.path) == ["rank-00001.safetensors", "save.lock"]


def test_it_is_claimed_until_rank_0_gives_it_up(directory, save):
    assert save.is_claimed()

    directory.abandon(save)

    assert not save.is_claimed()


def test_it_is_held_here_while_its_lock_is(directory):
    lock = directory.begin(2, "b2")
    save = directory.incomplete(2, "b2")
    assert save.is_held_here()
    assert directory.saves_under_way() == []  # who claims a save need not wait for it
    (save.path / LOCK_FILE).write_text("this-host 1")
    assert directory.saves_under_way() == [save]

    lock.release()

    assert not save.is_held_here()
    assert directory.saves_under_way() == []
