"""In a store that can neither rename nor list what is new, only whole checkpoints are shown, whatever interrupts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointError, CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.object_directory import ObjectCheckpointDirectory
from production_ml.storage.base import ObjectStore
from production_ml.storage.hashing import hash_bytes
from production_ml.storage.local import LocalStore
from production_ml.testing.stores import FailingStore, StaleListing

SHARD = b"shard bytes"
DAYS = 24 * 3600


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture
def directory(store: ObjectStore) -> ObjectCheckpointDirectory:
    return ObjectCheckpointDirectory(store)


def write(directory: ObjectCheckpointDirectory, step: int, save_id: str = "a1", ranks: int = 2) -> Manifest:
    """All that comes before the commit."""
    directory.begin(step, save_id)
    save = directory.incomplete(step, save_id)
    names = [save.write_shard(rank, memoryview(SHARD + b"room to spare"), len(SHARD)) for rank in range(ranks)]
    for rank in range(1, ranks):
        save.write_part(rank, b"{}")
    files = {name: FileEntry(size_bytes=len(SHARD), header_hash=hash_bytes(SHARD)) for name in names}
    values = {"model": {}, "optimizer": None, "extra": {}}
    facts = {"created_at": 5.0, "world_size": ranks, "metrics": {"loss": 0.5}, "values": values, "tensors": {}}
    return Manifest(step=step, save_id=save_id, files=files, **facts)


def commit(directory: ObjectCheckpointDirectory, step: int, save_id: str = "a1") -> None:
    manifest = write(directory, step, save_id)
    directory.commit(directory.incomplete(step, save_id), manifest)


def keys(store: ObjectStore) -> list[str]:
    return [found.key for found in store.listing()]


def age(store: ObjectStore, folder: str, seconds: float) -> None:
    for found in store.listing(folder):
        then = SYSTEM_CLOCK.wall_seconds() - seconds
        os.utime(Path(store.address, found.key), (then, then))


def forget_owner(store: ObjectStore, folder: str) -> None:
    """As if a process of another host had begun the save."""
    owner = json.loads(store.get(f"{folder}/owner.json"))
    store.put(f"{folder}/owner.json", [json.dumps({**owner, "host": "another"}).encode()])


def test_a_commit_leaves_the_checkpoint_and_the_pointer_to_it(directory, store):
    commit(directory, 300)

    assert keys(store) == [
        "latest.json",
        "step-00000300/a1/rank-00000.safetensors",
        "step-00000300/a1/rank-00001.safetensors",
        "step-00000300/manifest.json",
    ]
    assert directory.steps() == [300]
    assert directory.manifest(300).files.keys() == {"a1/rank-00000.safetensors", "a1/rank-00001.safetensors"}
    assert [(info.step, info.metrics, info.size_bytes) for info in directory.infos()] == [
        (300, {"loss": 0.5}, 2 * len(SHARD))
    ]


def test_a_shard_is_read_by_the_name_that_the_manifest_gives_it(directory):
    commit(directory, 300)

    source = directory.source(300, "a1/rank-00001.safetensors")

    buffer = memoryview(bytearray(source.size_bytes))
    assert source.readinto(0, buffer) == len(SHARD)
    assert bytes(buffer) == SHARD
    source.close()


def test_what_is_written_is_no_checkpoint_before_its_manifest_is(directory):
    commit(directory, 1)
    write(directory, 2)

    assert directory.steps() == [1]
    assert directory.identity(2) is None


def test_steps_are_sorted_as_numbers_and_strangers_are_passed_over(directory, store):
    for step in (123_456_789, 9, 10):
        commit(directory, step)
    store.put("notes.txt", [b"1"])
    store.put("step-1/manifest.json", [b"1"])

    assert directory.steps() == [9, 10, 123_456_789]


def test_a_store_that_holds_nothing_has_no_steps(directory):
    assert (directory.steps(), directory.infos()) == ([], [])


def test_the_same_step_again_replaces_the_first_and_its_shards(directory, store):
    commit(directory, 1, "a1")
    first = directory.identity(1)
    commit(directory, 1, "b2")

    assert directory.manifest(1).save_id == "b2"
    assert directory.identity(1) not in (None, first)
    assert not store.listing("step-00000001/a1")


def test_a_listing_that_lags_hides_none_of_the_newest(store):
    stale = StaleListing(store)
    directory = ObjectCheckpointDirectory(stale)
    commit(directory, 1)
    stale.refresh()
    for step in (2, 3, 4):
        commit(directory, step)

    assert ObjectCheckpointDirectory(stale).steps() == [1, 2, 3, 4]


def test_a_listing_that_still_shows_what_was_removed_deceives_nobody(store):
    stale = StaleListing(store)
    directory = ObjectCheckpointDirectory(stale)
    for step in (1, 2):
        commit(directory, step)
    stale.refresh()
    ObjectCheckpointDirectory(store).remove(1)

    assert directory.steps() == [2]
    assert [info.step for info in directory.infos()] == [2]


@pytest.mark.parametrize("content", [b'{"steps": [1]}', b"nonsense", b'{"steps": 7}', b'{"steps": ["x", -3]}', b"[]"])
def test_a_pointer_that_lags_or_is_damaged_does_no_harm(directory, store, content):
    for step in (1, 2):
        commit(directory, step)
    store.put("latest.json", [content])

    assert directory.steps() == [1, 2]
    commit(directory, 3)
    assert directory.steps() == [1, 2, 3]
    assert 3 in json.loads(store.get("latest.json"))["steps"]


def test_a_pointer_to_what_is_gone_does_no_harm(directory):
    for step in (1, 2):
        commit(directory, step)
    directory.remove(2)

    assert directory.steps() == [1]


def test_no_manifest_names_a_shard_that_is_gone_or_cut_short(directory, store):
    commit(directory, 1)
    gone, short = write(directory, 2), write(directory, 3)
    store.delete(["step-00000002/a1/rank-00001.safetensors"])
    store.put("step-00000003/a1/rank-00001.safetensors", [SHARD[:-1]])

    for manifest in (gone, short):
        with pytest.raises(CheckpointWriteError, match="rank-00001"):
            directory.commit(directory.incomplete(manifest.step, "a1"), manifest)

    assert directory.steps() == [1]


def test_a_damaged_manifest_is_told_and_passed_over(directory, store):
    for step in (1, 2):
        commit(directory, step)
    manifest = bytearray(store.get("step-00000002/manifest.json"))
    manifest[-10] ^= 1
    store.put("step-00000002/manifest.json", [manifest])

    assert directory.steps() == [1, 2]
    assert [info.step for info in directory.infos()] == [1]
    with pytest.raises(DamagedCheckpointError, match=r"step-00000002/manifest\.json"):
        directory.manifest(2)
    with pytest.raises(DamagedCheckpointError, match="missing"):
        directory.manifest(3)


def test_a_checkpoint_is_whole_while_its_manifest_and_all_its_shards_are_there(directory, store):
    for step in (1, 2, 3):
        commit(directory, step)
    store.delete(["step-00000002/a1/rank-00000.safetensors"])
    store.put("step-00000003/manifest.json", [b"nonsense"])

    assert [directory.is_whole(step) for step in (1, 2, 3, 4)] == [True, False, False, False]


def test_what_a_store_that_does_not_answer_holds_is_not_taken_for_unchanged(directory, store):
    commit(directory, 1)
    cut_off = ObjectCheckpointDirectory(FailingStore(store, lambda verb, key: True))

    assert cut_off.identity(1) not in (None, directory.identity(1), cut_off.identity(1))
    assert cut_off.saves_under_way() == []
    assert not cut_off.is_whole(1)


def test_saves_under_way_are_those_of_living_processes_of_this_host(directory, store):
    for step in (1, 2, 3):
        write(directory, step)
    forget_owner(store, "step-00000002/a1")
    directory.abandon(directory.incomplete(3, "a1"))

    assert [save.step for save in directory.saves_under_way()] == [1]


def test_a_store_that_does_not_answer_is_no_damage(directory, store):
    commit(directory, 1)
    cut_off = ObjectCheckpointDirectory(FailingStore(store, lambda verb, key: True))

    for ask in (lambda: cut_off.manifest(1), lambda: cut_off.source(1, "a1/rank-00000.safetensors")):
        with pytest.raises(CheckpointError, match="timed out") as caught:
            ask()
        assert not isinstance(caught.value, DamagedCheckpointError)
    with pytest.raises(OSError, match="timed out"):
        cut_off.steps()


def test_quarantine_keeps_the_bytes_and_says_why(directory, store):
    commit(directory, 1)
    commit(directory, 2)
    manifest = store.get("step-00000002/manifest.json")

    place = directory.quarantine(2, {"damage": ["a flipped bit"]})

    assert directory.steps() == [1]
    folder = place.removeprefix(f"{directory.url}/")
    assert store.get(f"{folder}/manifest.json") == manifest
    assert json.loads(store.get(f"{folder}/reason.json")) == {
        "damage": ["a flipped bit"],
        "shards": ["step-00000002/a1"],
    }
    assert store.get("step-00000002/a1/rank-00000.safetensors") == SHARD


def test_evidence_outlives_a_new_save_of_its_step_and_every_clearing(directory, store):
    commit(directory, 2, "a1")
    directory.quarantine(2, {})
    age(store, "step-00000002", 3 * DAYS)

    commit(directory, 2, "b2")
    directory.remove_leftovers()
    directory.remove(2)
    directory.remove_leftovers()

    assert store.get("step-00000002/a1/rank-00000.safetensors") == SHARD
    assert directory.steps() == []


def test_a_removal_leaves_nothing(directory, store):
    commit(directory, 1)

    directory.remove(1)

    assert keys(store) == ["latest.json"]


def test_a_removal_that_is_interrupted_leaves_nothing_that_looks_like_a_checkpoint(directory, store):
    commit(directory, 1)
    interrupted = FailingStore(store, lambda verb, key: verb == "delete" and key.endswith(".safetensors"))

    with pytest.raises(OSError, match="timed out"):
        ObjectCheckpointDirectory(interrupted).remove(1)

    assert directory.steps() == []
    assert directory.identity(1) is None
    age(store, "step-00000001", 2 * DAYS)
    directory.remove_leftovers()
    assert keys(store) == ["latest.json"]


def test_an_abandoned_save_leaves_nothing_and_its_ranks_see_it(directory, store):
    write(directory, 2)
    save = directory.incomplete(2, "a1")
    assert save.is_claimed()

    directory.abandon(save)
    directory.abandon(save)

    assert not save.is_claimed()
    assert keys(store) == []


def test_a_commit_whose_answer_was_lost_is_taken_back_by_abandoning_it(directory, store):
    commit(directory, 1)
    lossy = FailingStore(store, lambda verb, key: verb == "put" and key.endswith("/manifest.json"), after=True)
    manifest = write(directory, 2)
    with pytest.raises(OSError, match="timed out"):
        ObjectCheckpointDirectory(lossy).commit(directory.incomplete(2, "a1"), manifest)
    assert directory.is_committed(directory.incomplete(2, "a1"))

    directory.abandon(directory.incomplete(2, "a1"))

    assert directory.steps() == [1]
    assert not store.listing("step-00000002")


def test_what_fails_after_the_commit_does_not_undo_it(directory, store):
    untidy = FailingStore(store, lambda verb, key: verb == "delete" or (verb == "put" and key == "latest.json"))
    manifest = write(directory, 2)

    ObjectCheckpointDirectory(untidy).commit(directory.incomplete(2, "a1"), manifest)

    assert directory.steps() == [2]
    directory.remove_leftovers()
    assert directory.manifest(2).save_id == "a1"


def test_a_living_save_is_not_touched(directory, store):
    write(directory, 2)
    age(store, "step-00000002", 3 * DAYS)

    directory.remove_leftovers()

    assert len(store.listing("step-00000002/a1")) == 4


def test_a_save_whose_process_is_dead_is_cleared_at_once(directory, store):
    commit(directory, 1)
    write(directory, 2)
    owner = json.loads(store.get("step-00000002/a1/owner.json"))
    store.put("step-00000002/a1/owner.json", [json.dumps({**owner, "started": owner["started"] - 1}).encode()])

    directory.remove_leftovers()

    assert not store.listing("step-00000002")
    assert directory.steps() == [1]


@pytest.mark.parametrize(("seconds", "is_kept"), [(DAYS / 2, True), (2 * DAYS, False)])
def test_a_save_of_another_host_is_judged_by_its_silence(directory, store, seconds, is_kept):
    write(directory, 2)
    forget_owner(store, "step-00000002/a1")
    age(store, "step-00000002", seconds)

    directory.remove_leftovers()

    assert bool(store.listing("step-00000002")) is is_kept


def test_nothing_of_a_step_is_cleared_while_a_damaged_manifest_hides_which_save_counts(directory, store):
    commit(directory, 2)
    store.put("step-00000002/manifest.json", [store.get("step-00000002/manifest.json").replace(b'"a1"', b'"a3"')])
    age(store, "step-00000002", 2 * DAYS)

    directory.remove_leftovers()

    assert len(store.listing("step-00000002/a1")) == 2


def test_a_listing_that_lags_endangers_no_committed_save(store):
    stale = StaleListing(store)
    directory = ObjectCheckpointDirectory(stale)
    manifest = write(directory, 2)
    age(store, "step-00000002", 2 * DAYS)
    stale.refresh()
    directory.commit(directory.incomplete(2, "a1"), manifest)
    assert "step-00000002/manifest.json" not in [found.key for found in stale.listing()]

    ObjectCheckpointDirectory(stale).remove_leftovers()

    assert len(store.listing("step-00000002/a1")) == 2


def test_a_manifest_is_read_once_for_infos(directory, store):
    commit(directory, 1)
    whole = []

    def watch(verb, key):
        whole.append(key)
        return False

    watched = ObjectCheckpointDirectory(FailingStore(store, watch))
    watched.infos()
    first = len(whole)
    whole.clear()
    watched.infos()

    assert len(whole) == first - 1
