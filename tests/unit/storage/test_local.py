"""A directory as a store: an object is there as a whole or not at all."""

from __future__ import annotations

import os

import pytest

from production_ml.storage.local import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "store"))


def test_a_put_that_fails_leaves_what_was_there_and_nothing_else(store, tmp_path, file_size_limit):
    store.put("a", [b"old"])

    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        store.put("a", [b"x" * 2000])

    assert store.get("a") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_what_a_killed_process_began_is_no_object_and_is_cleared_by_age(store, tmp_path):
    store.put("folder/a", [b"1"])
    begun = tmp_path / "store/folder/.unfinished-b.00ff"
    begun.write_bytes(b"half")
    os.utime(begun, (1000.0, 1000.0))

    assert [found.key for found in store.listing()] == ["folder/a"]
    assert store.clear_unfinished(before=999.0) == 0
    assert store.clear_unfinished(before=1001.0) == 1
    assert not begun.exists()


def test_a_folder_that_has_nothing_left_is_gone(store, tmp_path):
    store.put("a/b/c", [b"1"])
    store.put("a/d", [b"1"])

    store.delete(["a/b/c"])

    assert [path.name for path in (tmp_path / "store/a").iterdir()] == ["d"]


def test_spaces_in_a_file_url_are_understood(tmp_path):
    LocalStore(f"file://{tmp_path}/with%20space").put("a", [b"1"])

    assert (tmp_path / "with space/a").exists()
