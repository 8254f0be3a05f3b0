"""A shard in a store is read like a file, in few requests and never more than it holds."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.object_source import ObjectSource
from production_ml.storage.local import LocalStore
from production_ml.testing.stores import FailingStore

SIZE = 10_050
BLOCK = 100


class Counting(FailingStore):
    """Remembers which ranges were asked for."""

    def __init__(self, store):
        super().__init__(store, lambda verb, key: False)
        self.ranges = []

    def get(self, key, begin=0, end=None):
        self.ranges.append((begin, end))
        return super().get(key, begin, end)


@pytest.fixture
def data(rng) -> bytes:
    return rng.randbytes(SIZE)


@pytest.fixture
def store(tmp_path: Path, data: bytes) -> Counting:
    store = Counting(LocalStore(str(tmp_path)))
    store.put("shard", [data])
    return store


@pytest.fixture
def source(store):
    source = ObjectSource(store, "shard", step=7, block_bytes=BLOCK)
    yield source
    source.close()


def read(source: ObjectSource, position: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    return bytes(buffer[: source.readinto(position, buffer)])


def test_any_range_is_what_the_object_holds_there(source, data, rng):
    for _ in range(200):
        position, length = rng.randrange(SIZE + 50), rng.randrange(4000)

        assert read(source, position, length) == data[position : position + length]


def test_ten_thousand_small_reads_are_a_hundred_requests(source, store, data):
    together = b"".join(read(source, position, 1) for position in range(SIZE))

    assert together == data
    assert len(store.ranges) == SIZE // BLOCK + 1


def test_what_is_prefetched_is_not_fetched_again(source, store, data):
    source.prefetch(500, 300)
    source.prefetch(SIZE, 100)

    assert read(source, 500, 300) == data[500:800]
    assert sorted(store.ranges)[:3] == [(500, 600), (600, 700), (700, 800)]
    assert len({begin for begin, _ in store.ranges}) == len(store.ranges)


def test_one_reader_is_served_by_four_requests_at_once(store, data):
    together = threading.Barrier(4)

    class Slow(Counting):
        """Answers when four have asked."""

        def get(self, key, begin=0, end=None):
            together.wait(timeout=30)
            return super().get(key, begin, end)

    source = ObjectSource(Slow(store), "shard", step=7, block_bytes=SIZE // 8 + 1)

    assert read(source, 0, SIZE) == data
    source.close()


def test_several_threads_read_at_once(source, data, rng):
    wrong = []
    places = [rng.randrange(SIZE) for _ in range(400)]

    def work(own):
        wrong.extend(place for place in own if read(source, place, 350) != data[place : place + 350])

    threads = [threading.Thread(target=work, args=(places[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_eight_threads_that_read_on_side_by_side_fetch_hardly_anything_twice(source, store):
    span_bytes, in_step = 2 * BLOCK, threading.Barrier(8)

    def work(number: int) -> None:
        for span in range(number, 48, 8):
            for piece in range(0, span_bytes, 20):
                read(source, span * span_bytes + BLOCK // 2 + piece, 20)
                in_step.wait(timeout=30)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(store.ranges)) >= 48 * 2
    assert len(store.ranges) < 1.25 * len(set(store.ranges))


def test_many_open_shards_keep_no_more_in_memory_than_one(store):
    with contextlib.ExitStack() as at_end:
        sources = [ObjectSource(store, "shard", step=7, block_bytes=SIZE) for _ in range(40)]
        for source in sources:
            at_end.callback(source.close)
            read(source, 0, 10)
        newest, oldest = sources[-1], sources[0]

        read(newest, 20, 10)
        assert len(store.ranges) == 40
        read(oldest, 20, 10)
        assert len(store.ranges) == 41


def test_an_object_that_became_shorter_gives_fewer_bytes(source, store, data):
    store.put("shard", [data[:450]])

    assert read(source, 400, 200) == data[400:450]


def test_an_object_that_is_not_there_is_damage(store):
    with pytest.raises(DamagedCheckpointError, match="missing") as caught:
        ObjectSource(store, "none", step=7)

    assert caught.value.step == 7


def test_a_store_that_does_not_answer_is_no_damage_and_is_asked_anew(store, data):
    is_down = [False]
    failing = FailingStore(store, lambda verb, key: is_down[0])
    source = ObjectSource(failing, "shard", step=7, block_bytes=BLOCK)
    is_down[0] = True
    with pytest.raises(CheckpointError, match="timed out") as caught:
        read(source, 0, 10)
    assert not isinstance(caught.value, DamagedCheckpointError)

    is_down[0] = False

    assert read(source, 0, SIZE) == data
    source.close()


def test_an_empty_object_has_nothing_to_read(store):
    store.put("empty", [])
    source = ObjectSource(store, "empty", step=7)

    source.prefetch(0, 10)

    assert (source.size_bytes, read(source, 0, 10)) == (0, b"")
    source.close()
