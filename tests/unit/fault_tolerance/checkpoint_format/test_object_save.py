"""The ranks of a save hear of each other by name, and nobody takes a living process for dead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.object_save import ObjectSave
from production_ml.storage.local import LocalStore
from production_ml.testing.stores import FailingStore, StaleListing

CLAIM = (
    "import sys; from production_ml.storage.local import LocalStore;"
    "from production_ml.fault_tolerance.checkpoint_format.object_save import ObjectSave;"
    "ObjectSave(LocalStore(sys.argv[1]), 300, 'a1').claim(); print('claimed', flush=True);"
    "sys.stdin.read()"
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


@pytest.fixture
def save(store: LocalStore) -> ObjectSave:
    return ObjectSave(store, 300, "a1")


def test_parts_are_found_though_no_listing_shows_them(store):
    save = ObjectSave(StaleListing(store), 300, "a1")
    save.write_part(2, b"two")

    assert save.read_parts([1, 2, 3]) == {2: b"two"}


def test_a_store_that_does_not_answer_is_not_a_part_that_is_late(store):
    save = ObjectSave(FailingStore(store, lambda verb, key: verb == "get"), 300, "a1")

    with pytest.raises(OSError, match="timed out"):
        save.read_parts([1])


def test_a_rank_takes_back_its_shard_and_nothing_else(save, store):
    for rank in (1, 2):
        save.write_shard(rank, memoryview(b"x"), 1)
        save.write_part(rank, b"{}")

    save.withdraw(1)

    assert [found.key for found in store.listing()] == [
        "step-00000300/a1/part-00001.json",
        "step-00000300/a1/part-00002.json",
        "step-00000300/a1/rank-00002.safetensors",
    ]


def test_a_claim_that_is_released_is_none(save):
    claim = save.claim()
    assert save.is_claimed()

    claim.release()

    assert not save.is_claimed()


def test_a_process_is_alive_until_it_is_killed(save, store):
    command = [sys.executable, "-c", CLAIM, store.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert save.is_held_here()
        assert not save.is_dead(store.listing())
        process.kill()

    assert not save.is_held_here()
    assert save.is_dead(store.listing())


def test_the_process_that_writes_rank_0s_shard_claims_the_save_of_one_that_died(save, store):
    command = [sys.executable, "-c", CLAIM, store.address]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    assert save.is_dead(store.listing())

    save.write_shard(0, memoryview(b"x"), 1)

    assert save.is_held_here()


def test_what_cannot_be_seen_is_not_surely_held(store):
    save = ObjectSave(FailingStore(store, lambda verb, key: verb == "get"), 300, "a1")
    save.claim()

    assert not save.is_held_here()


def test_a_claim_names_host_and_process_and_no_more(save, store):
    save.claim()

    owner = json.loads(store.get("step-00000300/a1/owner.json"))
    assert set(owner) == {"host", "pid", "started", "boot_id", "pid_namespace"}


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"[]", b'{"pid": "x"}'])
def test_a_claim_that_cannot_be_read_proves_nobody_dead(save, store, damage):
    save.claim()
    store.put("step-00000300/a1/owner.json", [damage])

    assert not save.is_dead(store.listing())


def test_a_save_of_which_nothing_is_known_is_not_dead(save):
    assert not save.is_dead([])
