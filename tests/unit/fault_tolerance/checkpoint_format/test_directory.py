"""The directory shows only whole checkpoints, whatever interrupts the steps that change it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.read_lease import read_lease


def manifest_of(step: int, save_id: str = "a1") -> Manifest:
    return Manifest(
        step=step,
        save_id=save_id,
        created_at=5.0,
        world_size=1,
        metrics={},
        values={"model": {}, "optimizer": None, "extra": {}},
        files={},
        tensors={},
    )


def commit(directory: CheckpointDirectory, step: int, save_id: str = "a1") -> None:
    directory.begin(step, save_id).release()
    directory.commit(directory.incomplete(step, save_id), manifest_of(step, save_id))


def names(directory: CheckpointDirectory) -> list[str]:
    return sorted(entry.name for entry in directory.path.iterdir())


def test_a_commit_leaves_the_checkpoint_and_nothing_else(directory):
    commit(directory, 300)

    assert names(directory) == ["step-00000300"]
    assert (directory.committed(300) / "manifest.json").exists()
    assert len(list(directory.committed(300).iterdir())) == 1
    assert directory.manifest(300).step == 300


def test_steps_are_sorted_as_numbers_and_strangers_are_passed_over(directory):
    for step in (123_456_789, 9, 10):
        commit(directory, step)
    (directory.path / "notes.txt").touch()
    (directory.path / "step-1").mkdir()

    assert directory.steps() == [9, 10, 123_456_789]


def test_a_directory_that_is_not_there_has_no_steps(directory):
    assert directory.steps() == []
    assert directory.infos() == []


def test_the_same_step_again_replaces_the_first(directory):
    commit(directory, 1, "a1")
    commit(directory, 1, "b2")

    assert names(directory) == ["step-00000001"]
    assert directory.manifest(1).save_id == "b2"


def test_a_crash_between_the_two_renames_of_a_replacement_loses_nothing(directory):
    commit(directory, 1, "a1")
    directory.begin(1, "b2").release()
    directory.committed(1).rename(directory.path / ".replaced-step-00000001-b2")

    directory.remove_leftovers()

    assert names(directory) == ["step-00000001"]
    assert directory.manifest(1).save_id == "a1"


def test_a_checkpoint_whose_manifest_is_damaged_is_passed_over(directory):
    commit(directory, 1, "a1")
    commit(directory, 2)
    assert [info.step for info in directory.infos()] == [1, 2]

    (directory.committed(2) / "manifest.json").write_text("nonsense")

    assert [info.step for info in directory.infos()] == [1]
    with pytest.raises(DamagedCheckpointError):
        directory.manifest(2)


def test_quarantine_keeps_the_bytes_and_says_why(directory):
    commit(directory, 1)

    kept = directory.quarantine(1, {"damage": ["a flipped bit"]})

    assert directory.steps() == []
    assert kept.parent == directory.path / "quarantine"
    assert json.loads((kept / "reason.json").read_text()) == {"damage": ["a flipped bit"]}
    assert (kept / "manifest.json").exists()


def test_a_file_in_the_place_of_a_checkpoint_can_be_quarantined(directory):
    commit(directory, 1)
    (directory.path / "step-00000002").write_text("a file")

    assert directory.quarantine(2, {}).read_text() == "a file"
    assert directory.steps() == [1]


def test_leftovers_of_the_dead_are_removed_and_committed_checkpoints_are_not(directory):
    commit(directory, 1)
    directory.begin(2, "dead").release()
    (directory.path / ".removed-step-00000003").mkdir()

    directory.remove_leftovers()

    assert names(directory) == ["step-00000001"]


def test_a_save_that_is_under_way_in_a_living_process_is_not_touched(directory):
    lock = directory.begin(2, "live")

    CheckpointDirectory(directory.path).remove_leftovers()
    assert directory.incomplete(2, "live").path.exists()

    lock.release()
    CheckpointDirectory(directory.path).remove_leftovers()
    assert not directory.incomplete(2, "live").path.exists()


def test_a_process_that_was_killed_holds_no_lock(directory):
    directory.begin(2, "other").release()
    code = (
        "import fcntl, os, signal, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code, str(directory.incomplete(2, "other").path / "save.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        directory.remove_leftovers()
        assert directory.incomplete(2, "other").path.exists()
        process.kill()

    directory.remove_leftovers()
    assert not directory.incomplete(2, "other").path.exists()


def test_a_save_of_another_host_is_not_removed_though_its_lock_is_not_known_here(directory):
    directory.begin(2, "far").release()
    (directory.incomplete(2, "far").path / "save.lock").write_text("another-host 1\n")

    directory.remove_leftovers()

    assert directory.incomplete(2, "far").path.exists()


def test_the_replacement_of_a_living_save_is_left_to_it(directory):
    commit(directory, 1, "a1")
    lock = directory.begin(1, "b2")
    directory.committed(1).rename(directory.path / ".replaced-step-00000001-b2")

    directory.put_back()
    assert directory.steps() == []

    lock.release()
    directory.put_back()
    assert directory.manifest(1).save_id == "a1"


def test_what_was_replaced_is_removed_where_its_successor_is_there(directory):
    commit(directory, 1, "b2")
    (directory.path / ".replaced-step-00000001-b2").mkdir()

    directory.remove_leftovers()

    assert names(directory) == ["step-00000001"]


def test_a_checkpoint_that_took_the_place_of_another_has_another_identity(directory):
    commit(directory, 1, "a1")
    first = directory.identity(1)
    commit(directory, 1, "b2")

    assert directory.identity(1) not in (None, first)
    assert directory.identity(2) is None


def test_a_save_whose_lock_cannot_be_made_leaves_no_directory(directory):
    directory.path.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                directory.begin(1, "00ff")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert names(directory) == []


def test_a_removal_and_an_abandoned_save_leave_nothing(directory):
    commit(directory, 1)
    lock = directory.begin(2, "b2")

    directory.remove(1)
    directory.abandon(directory.incomplete(2, "b2"))
    directory.abandon(directory.incomplete(2, "b2"))
    lock.release()

    assert names(directory) == []


def test_what_is_being_read_is_not_removed(directory):
    commit(directory, 1)

    with read_lease(directory.committed(1)):
        assert not directory.remove(1)
    assert directory.steps() == [1]
    assert directory.remove(1)
    assert names(directory) == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: (path / "rank-00000.safetensors").unlink(),
        lambda path: os.truncate(path / "rank-00000.safetensors", 20),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{}"),
    ],
    ids=["shard missing", "shard cut off", "manifest missing", "manifest damaged"],
)
def test_a_checkpoint_that_lacks_something_is_not_whole(directory, commit_step, break_it):
    commit_step(1)
    assert directory.is_whole(1)

    break_it(directory.committed(1))

    assert not directory.is_whole(1)
    assert not directory.is_whole(2)


def test_a_replacement_whose_rename_fails_puts_the_old_checkpoint_back(directory):
    commit(directory, 1, "a1")
    gone = directory.begin(1, "b2")
    written = directory.incomplete(1, "b2").path

    class Vanishing(type(written)):
        """The directory of a save that another process takes away between the two renames."""

        def rename(self, target):
            raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(FileNotFoundError):
        directory.commit(DirectorySave(Vanishing(written)), manifest_of(1, "b2"))
    gone.release()

    assert directory.manifest(1).save_id == "a1"


def test_all_directories_that_a_first_save_makes_are_made_durable(tmp_path, touched):
    place = CheckpointDirectory(tmp_path / "a" / "b")

    with touched(tmp_path) as found:  # to fsync a directory is to open it
        place.begin(1, "00ff").release()

    assert {tmp_path, tmp_path / "a"} <= found


def test_a_quarantined_checkpoint_and_the_reason_are_made_durable(directory, commit_step, touched):
    commit_step(1)

    with touched(directory.path) as found:
        moved = directory.quarantine(1, {"why": "a flipped bit"})

    assert {directory.path, moved.parent, moved, moved / "reason.json"} <= found
