"""A checkpoint that is being read is not removed, and a reader never takes a lease on what is gone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.read_lease import is_being_read, read_lease, removal_claim


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = tmp_path / "step-00000001"
    made.mkdir()
    (made / "manifest.json").write_text("{}")
    return made


def test_two_readers_share_a_checkpoint_and_the_last_one_lets_go_of_it(checkpoint):
    with read_lease(checkpoint) as first:
        with read_lease(checkpoint) as second:
            assert first
            assert second
            assert is_being_read(checkpoint)
        assert is_being_read(checkpoint)
    assert not is_being_read(checkpoint)


def test_a_reader_that_fails_lets_go(checkpoint):
    with pytest.raises(RuntimeError, match="out of memory"), read_lease(checkpoint):
        raise RuntimeError("out of memory")

    assert not is_being_read(checkpoint)


def test_a_claim_is_refused_while_a_reader_reads(checkpoint):
    with read_lease(checkpoint), removal_claim(checkpoint) as may_remove:
        assert not may_remove
    with removal_claim(checkpoint) as may_remove:
        assert may_remove


def test_a_reader_that_came_while_it_was_removed_holds_nothing(checkpoint):
    held = []

    def read() -> None:
        with read_lease(checkpoint) as is_held:
            held.append(is_held)

    reader = threading.Thread(target=read)
    with removal_claim(checkpoint):
        reader.start()
        checkpoint.rename(checkpoint.with_name(".removed"))
    reader.join()

    assert held == [False]


def test_a_reader_that_waited_for_a_claim_reads_what_took_the_name(checkpoint):
    newer = checkpoint.with_name("newer")
    newer.mkdir()
    (newer / "manifest.json").write_text("[]")
    held = []

    def read() -> None:
        with read_lease(checkpoint) as is_held:
            held.append((is_held, is_being_read(checkpoint)))

    reader = threading.Thread(target=read)
    with removal_claim(checkpoint):
        reader.start()
        checkpoint.rename(checkpoint.with_name(".removed"))
        newer.rename(checkpoint)
    reader.join()

    assert held == [(True, True)]


@pytest.mark.parametrize("manifest", ["missing", "unreadable"])
def test_where_no_lease_can_be_had_reading_and_removing_go_on(checkpoint, manifest):
    (checkpoint / "manifest.json").unlink()
    if manifest == "unreadable":
        (checkpoint / "manifest.json").symlink_to("manifest.json")  # ELOOP, for root too

    with read_lease(checkpoint) as is_held:
        assert not is_held
    with removal_claim(checkpoint) as may_remove:
        assert may_remove


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(checkpoint):
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")

    with read_lease(checkpoint) as is_held:
        assert not is_held


def test_a_worker_that_was_forked_meanwhile_does_not_keep_the_lease(checkpoint):
    with read_lease(checkpoint):
        # As a fork has them: the lock belongs to what was opened, not to one descriptor of it.
        copies = [os.dup(int(name.name)) for name in Path("/proc/self/fd").iterdir() if _is_manifest(name, checkpoint)]

    assert copies
    assert not is_being_read(checkpoint)
    for copy in copies:
        os.close(copy)


def _is_manifest(descriptor: Path, checkpoint: Path) -> bool:
    try:
        return descriptor.readlink() == checkpoint / "manifest.json"
    except OSError:  # the one that lists the descriptors is gone by now
        return False
