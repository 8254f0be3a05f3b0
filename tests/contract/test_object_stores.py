"""What every kind of object store must do. A new kind adds one name to `PLACES`: where a test may store something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError
from production_ml.storage.base import ObjectStore
from production_ml.storage.stores import STORES, load_kind, open_store
from production_ml.testing.s3_servers import BUCKET

UNTESTED = {"gs", "gcs", "abfs"}
"""There is no server of theirs to be had here; their kind is that of `memory`."""
PLACES = [
    "file",
    "memory",
    pytest.param("s3 by moto", marks=pytest.mark.services),
    pytest.param("s3 by s3rver", marks=pytest.mark.services),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, use_s3: Callable[[str], None]) -> str:
    """A URL where nothing is stored."""
    name, _, server = str(request.param).partition(" by ")
    if name == "file":
        return f"file://{tmp_path}/objects"
    if server:
        use_s3(request.getfixturevalue(server).url)
    return f"{name}://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def store(place: str) -> ObjectStore:
    return open_store(place)


def test_every_kind_is_tried_here():
    tried = {str(getattr(place, "values", (place,))[0]).partition(" ")[0] for place in PLACES}

    assert tried | UNTESTED == set(STORES.names())
    assert {load_kind(name) for name in UNTESTED} == {load_kind("memory")}


def test_what_is_put_is_there_for_anyone_who_asks_by_name(store, place):
    store.put("a/b/c.json", [b"one", memoryview(b"two"), b""])

    assert store.get("a/b/c.json") == b"onetwo"
    assert store.size("a/b/c.json") == 6
    assert open_store(place).get("a/b/c.json") == b"onetwo"


def test_a_part_of_an_object_can_be_read(store):
    store.put("a", [b"0123456789"])

    assert store.get("a", 2, 5) == b"234"
    assert store.get("a", 7) == b"789"
    assert store.get("a", 7, 100) == b"789"
    assert store.get("a", 10, 20) == b""
    assert store.get("a", 3, 3) == b""


def test_an_empty_object_is_an_object(store):
    store.put("empty", [])

    assert (store.get("empty"), store.size("empty")) == (b"", 0)
    assert [found.key for found in store.listing()] == ["empty"]


def test_a_large_object_comes_back_to_the_last_byte(store, rng):
    large = rng.randbytes(18_000_001)
    pieces = [memoryview(large)[:3], memoryview(large)[3:17_000_000], memoryview(large)[17_000_000:]]

    store.put("large", pieces)

    assert store.size("large") == len(large)
    assert store.get("large") == large
    assert store.get("large", 16_777_210, 16_777_220) == large[16_777_210:16_777_220]


def test_a_second_put_replaces_the_first(store):
    store.put("a", [b"first, and longer"])
    store.put("a", [b"second"])

    assert store.get("a") == b"second"
    assert len(store.listing()) == 1


def test_a_reader_beside_a_writer_sees_one_version_or_the_other(store, place, request):
    if "s3rver" in request.node.name:
        return  # it writes in place, which S3 promises not to do
    versions = [bytes([letter]) * 300_000 for letter in (65, 66)]
    store.put("a", [versions[0]])
    stop = threading.Event()

    def replace():
        writer = open_store(place)
        for turn in range(10_000):
            if stop.is_set():
                return
            writer.put("a", [versions[turn % 2]])

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        seen = {store.get("a") for _ in range(20)}
    finally:
        stop.set()
        thread.join()

    assert seen <= set(versions)


def test_a_listing_shows_what_is_below_a_folder_and_nothing_beside_it(store):
    before = time.time()
    for key in ("step-1/b", "step-1/a/x", "step-10/a", "latest.json"):
        store.put(key, [b"12"])

    assert [found.key for found in store.listing()] == ["latest.json", "step-1/a/x", "step-1/b", "step-10/a"]
    assert [found.key for found in store.listing("step-1")] == ["step-1/a/x", "step-1/b"]
    assert store.listing("nothing") == []
    assert {found.size_bytes for found in store.listing()} == {2}
    assert all(abs(found.modified_at - before) < 600 for found in store.listing())


def test_another_hosts_writes_are_in_the_next_listing(store, place):
    store.put("a", [b"1"])
    store.listing()
    open_store(place).put("b", [b"1"])

    assert [found.key for found in store.listing()] == ["a", "b"]


def test_what_is_deleted_is_gone_and_the_rest_is_not(store):
    for key in ("a/1", "a/2", "b"):
        store.put(key, [b"1"])

    store.delete(["a/1", "never-there"])
    store.delete([])

    assert [found.key for found in store.listing()] == ["a/2", "b"]


@pytest.mark.parametrize("ask", [lambda store: store.get("none/x"), lambda store: store.size("none/x")])
def test_what_is_not_there_is_a_file_not_found(store, ask):
    store.put("a", [b"1"])

    with pytest.raises(FileNotFoundError) as caught:
        ask(store)

    assert caught.value.strerror


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", "a b", "a?b", "a\nb"])
def test_a_key_that_leaves_the_store_or_has_two_meanings_is_refused(store, key):
    for ask in (lambda: store.put(key, [b""]), lambda: store.get(key), lambda: store.delete([key])):
        with pytest.raises(ConfigError):
            ask()


def test_clearing_what_was_begun_takes_no_object_away(store):
    store.put("a", [b"1"])

    store.clear_unfinished(before=time.time() + 3600)

    assert store.get("a") == b"1"


def test_several_threads_may_put_and_get_at_once(store):
    wrong = []

    def work(name: str) -> None:
        for turn in range(5):
            data = f"{name}{turn}".encode() * 1000
            store.put(name, [data])
            if store.get(name) != data:
                wrong.append((name, turn))

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(store.listing()) == 6
