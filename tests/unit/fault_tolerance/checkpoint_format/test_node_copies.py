"""The ranks of a node fetch a shard once, and a node without room does without."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.fault_tolerance.checkpoint_format.node_copies import NodeCopies
from production_ml.storage.local import LocalStore
from production_ml.testing.stores import FailingStore

DATA = b"shard" * 1000


class Counted(LocalStore):
    """Leaves a file beside the store for each time that something is read, whichever process reads."""

    def get(self, key, begin=0, end=None):
        Path(f"{self.address}-reads").mkdir(exist_ok=True)
        Path(f"{self.address}-reads", f"{os.getpid()}-{begin}").touch()
        return super().get(key, begin, end)

    def reads(self):
        return len(list(Path(f"{self.address}-reads").iterdir()))


@pytest.fixture
def store(tmp_path):
    store = Counted(str(tmp_path / "store"))
    store.put("a1/shard", [DATA])
    return store


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "node"


def rank(address, folder, all_have_read):
    copy = NodeCopies(folder).fetch(Counted(address), "a1/shard")
    assert copy.path.read_bytes() == DATA
    all_have_read.wait()
    copy.release()


def test_four_ranks_fetch_a_shard_once_and_leave_nothing(store, folder):
    context = multiprocessing.get_context("fork")
    all_have_read = context.Barrier(4)
    ranks = [context.Process(target=rank, args=(store.address, folder, all_have_read)) for _ in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()

    assert [process.exitcode for process in ranks] == [0] * 4
    assert store.reads() == 1
    assert list(folder.iterdir()) == []


def test_a_copy_stays_as_long_as_one_rank_reads_it(store, folder):
    first, second = (NodeCopies(folder).fetch(store, "a1/shard") for _ in range(2))

    first.release()

    assert second.path.read_bytes() == DATA
    second.release()
    assert not second.path.exists()


def test_a_copy_that_was_cut_short_is_fetched_anew(store, folder):
    copy = NodeCopies(folder).fetch(store, "a1/shard")
    copy.path.write_bytes(DATA[:10])

    again = NodeCopies(folder).fetch(store, "a1/shard")

    assert again.path.read_bytes() == DATA


def test_a_node_whose_disk_is_full_reads_the_store(store, folder, file_size_limit):
    with file_size_limit(1000):
        assert NodeCopies(folder).fetch(store, "a1/shard") is None

    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_a_node_that_takes_no_files_reads_the_store(store, tmp_path):
    (tmp_path / "a-file").touch()

    assert NodeCopies(tmp_path / "a-file" / "node").fetch(store, "a1/shard") is None


def test_a_store_that_does_not_answer_is_told(store, folder):
    failing = FailingStore(store, lambda verb, key: verb == "get")

    with pytest.raises(OSError, match="timed out"):
        NodeCopies(folder).fetch(failing, "a1/shard")


def test_what_a_killed_rank_left_is_cleared_after_a_day_and_what_is_read_is_not(store, folder):
    store.put("b2/shard", [b"other"])
    used = NodeCopies(folder).fetch(store, "a1/shard")
    left = NodeCopies(folder).fetch(store, "b2/shard")
    os.close(left._use)
    then = SYSTEM_CLOCK.wall_seconds() - 2 * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (then, then))

    store.put("c3/shard", [b"third"])
    NodeCopies(folder).fetch(store, "c3/shard")

    assert used.path.exists()
    assert not left.path.exists()
