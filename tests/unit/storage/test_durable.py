"""A durable write is there in full or not at all, and leaves nothing beside it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from production_ml.storage.durable import fsync_directory, make_directory_durably, replace_durably, write_durably


def test_what_was_written_can_be_read(tmp_path):
    write_durably(tmp_path / "manifest.json", b"{}")

    assert (tmp_path / "manifest.json").read_bytes() == b"{}"


def test_replacing_leaves_the_new_content_alone_in_the_directory(tmp_path):
    target = tmp_path / "state.json"
    replace_durably(target, b"old")
    replace_durably(target, b"new")

    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_content_and_no_litter(tmp_path):
    target = tmp_path / "state.json"
    replace_durably(target, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_durably(target, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_sees_the_old_content_or_the_new_and_no_missing_file(tmp_path):
    target = tmp_path / "state.json"
    replace_durably(target, b"a" * 1000)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for letter in (b"b", b"c") * 50:
            replace_durably(target, letter * 1000)
        os.write(writer, b".")
        os._exit(0)
    os.set_blocking(reader, False)
    seen: set[bytes] = set()
    finished = False
    while not finished:
        finished = _has_data(reader)
        content = target.read_bytes()
        assert len(content) == 1000
        seen.add(content[:1])
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)

    assert seen <= {b"a", b"b", b"c"}
    assert target.read_bytes() == b"c" * 1000


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fsync_directory(tmp_path / "absent")


def test_a_file_is_not_synced_as_a_directory(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError):
        fsync_directory(tmp_path / "file")


def _has_data(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return False


def test_a_directory_is_made_with_what_is_missing_above_it(tmp_path):
    make_directory_durably(tmp_path / "a" / "b")
    make_directory_durably(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_relative_directory_is_made_where_this_process_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    make_directory_durably(Path("a/b"))

    assert (tmp_path / "a" / "b").is_dir()
