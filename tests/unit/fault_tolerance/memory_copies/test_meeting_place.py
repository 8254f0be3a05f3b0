"""Keepers meet where nobody else may look, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace, connect, sweep


def test_a_keeper_is_found_and_leaves_no_trace(place):
    listener, name = place.listen()

    with listener, connect(place.sockets()[0], 5.0):
        assert [path.name for path in place.sockets()] == [name]

    place.leave(name)
    assert place.sockets() == []
    assert not place.path.exists()


def test_no_other_user_may_look_into_it(place):
    listener, _ = place.listen()
    listener.close()

    assert place.path.stat().st_mode & 0o777 == 0o700
    assert place.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_into_is_refused(place):
    place.path.parent.mkdir(mode=0o777)
    place.path.parent.chmod(0o777)

    with pytest.raises(CheckpointError, match="not a directory of this user alone"):
        place.listen()


def test_a_directory_behind_a_link_is_refused(place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    place.path.parent.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match="not a directory of this user alone"):
        place.listen()


def test_the_name_may_be_longer_than_a_sockets(place):
    deep = replace(place, path=place.path.parent / ("x" * 200))
    listener, _ = deep.listen()

    with listener, connect(deep.sockets()[0], 5.0):
        pass


def test_another_checkpoint_directory_is_another_place(place, tmp_path):
    assert MeetingPlace.of(str(tmp_path / "others")).path != place.path


def test_what_dead_owners_left_behind_is_swept_and_nothing_else(place, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    listener, name = place.listen()
    listener.close()
    base = place.path.parent
    dead = base / place.path.name.replace(f"-{place.owner_pid}-", f"-{ended.pid}-")
    strange = base / "something else"
    other_container = base / f"1{place.path.name}"
    for path in (dead, strange, other_container):
        path.mkdir()
    (dead / "1-aa.sock").touch()

    sweep(base)

    assert sorted(base.iterdir()) == sorted([place.path, strange, other_container])
    assert [path.name for path in place.sockets()] == [name]


def test_a_script_without_a_launcher_has_no_successors(place, monkeypatch):
    assert not place.outlives_this_process
    monkeypatch.setenv("PRODUCTION_ML_OWNER_PID", str(os.getppid()))
    assert MeetingPlace.of("checkpoints").outlives_this_process


def test_an_owner_whose_pid_another_process_has_got_is_dead(place):
    assert place.watch_owner() is not None
    assert replace(place, owner_start=place.owner_start - 1).watch_owner() is None
