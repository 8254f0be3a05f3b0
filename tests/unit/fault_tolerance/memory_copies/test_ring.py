"""No save is staged over one of the newest complete steps, whatever becomes of it."""

from __future__ import annotations

import pytest

from production_ml.fault_tolerance.memory_copies.ring import ImageRing


class FakeWriter:
    """A keeper that keeps what the test says."""

    def __init__(self):
        self.kept = set()
        self.reused = []
        self.introduced = []
        self.told = {}

    def transfers(self):
        return self.told

    def introduce(self, peer, *, held):
        self.introduced.append((peer, held))

    def reuse(self, image, *, agreed, replicated):
        self.reused.append((image.descriptor, agreed))


def save(ring, writer, save_id, *, succeeds=True):
    """One save; gives the image that it was staged in."""
    ring.settle(writer, call="save")
    staging = ring.next()
    ring.announce(writer)
    ring.hold(save_id)
    if succeeds:
        writer.kept.add(save_id)
    return staging.image.descriptor


@pytest.fixture
def writer():
    return FakeWriter()


@pytest.mark.parametrize("newest", [1, 2, 3])
def test_one_image_more_than_steps_are_kept_is_enough(newest, writer):
    ring = ImageRing(newest)
    images = [save(ring, writer, f"{step:02x}") for step in range(10)]

    assert len(set(images)) == newest + 1
    for at in range(newest, 10):
        assert images[at] not in images[at - newest : at]
    ring.close()


def test_saves_that_fail_take_each_others_image(writer):
    ring = ImageRing(1)
    good = save(ring, writer, "aa")

    failed = [save(ring, writer, save_id, succeeds=False) for save_id in ("bb", "cc", "dd")]

    assert good not in failed
    assert len(set(failed)) == 1
    ring.close()


def test_without_copies_there_is_one_image(writer):
    ring = ImageRing(0)

    assert len({save(ring, writer, save_id) for save_id in ("aa", "bb", "cc")}) == 1
    ring.close()


def test_the_keeper_is_told_which_image_is_written_into_and_how_many_steps_are_complete(writer):
    ring = ImageRing(2)
    images = [save(ring, writer, save_id) for save_id in ("aa", "bb", "cc", "dd")]

    assert writer.reused == list(zip(images, [0, 1, 2, 2], strict=True))
    ring.close()
