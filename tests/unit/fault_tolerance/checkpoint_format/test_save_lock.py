"""A save is called dead only by those who can know it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.save_lock import SILENCE_SECONDS, SaveLock, is_dead, is_held


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """A save whose process is gone."""
    SaveLock(tmp_path).release()
    return tmp_path


def make_silent(directory: Path) -> None:
    since = time.time() - SILENCE_SECONDS - 60
    for path in (*directory.iterdir(), directory):
        os.utime(path, (since, since))


def test_a_held_save_lives_though_nothing_was_written_for_long(tmp_path):
    lock = SaveLock(tmp_path)
    make_silent(tmp_path)

    assert is_held(tmp_path)
    assert not is_dead(tmp_path)
    lock.release()
    assert is_dead(tmp_path)


def test_the_lock_names_its_holder(tmp_path):
    SaveLock(tmp_path).release()

    assert (tmp_path / "save.lock").read_text() == f"{os.uname().nodename} {os.getpid()}\n"


@pytest.mark.parametrize("holder", ["another-host 1\n", ""])
def test_a_save_of_which_this_host_cannot_know_is_dead_only_after_a_long_silence(abandoned, holder):
    (abandoned / "save.lock").write_text(holder)

    assert not is_dead(abandoned)
    make_silent(abandoned)
    assert is_dead(abandoned)


def test_a_save_without_a_lock_is_dead_only_after_a_long_silence(tmp_path):
    assert not is_held(tmp_path)
    assert not is_dead(tmp_path)

    make_silent(tmp_path)
    assert is_dead(tmp_path)


def test_a_lock_that_cannot_be_opened_says_nothing_so_the_save_may_live(tmp_path):
    (tmp_path / "save.lock").symlink_to("save.lock")  # ELOOP, for root too

    assert is_held(tmp_path)
    assert not is_dead(tmp_path)
