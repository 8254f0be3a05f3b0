"""A full disk costs one alert and some saves, and nothing else."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import Event, subscribe, unsubscribe
from production_ml.fault_tolerance.saving.disk_pause import DiskPause, Verdict
from production_ml.testing.clock import FakeClock

TOO_MUCH = 1 << 60
"""More than any disk here has free."""
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
OVER_QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    receive = seen.append
    subscribe(receive)
    yield seen
    unsubscribe(receive)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pause(tmp_path, clock) -> DiskPause:
    return DiskPause(tmp_path, make_room=lambda step: [], reserve_bytes=0, clock=clock)


def test_where_there_is_room_nothing_is_said_and_nothing_is_removed(tmp_path, events):
    asked: list[int] = []
    pause = DiskPause(tmp_path, make_room=asked.append)

    assert pause.admits(1, 1000)
    pause.succeeded(1)

    assert (asked, events, pause.is_paused) == ([], [], False)


def test_a_save_for_which_there_is_no_room_is_left_out_with_one_loud_alert(pause, events, tmp_path):
    assert [pause.admits(step, TOO_MUCH) for step in (1, 2, 3)] == [False] * 3

    (alert,) = events
    assert (alert.name, alert.level) == ("checkpoint_paused", logging.ERROR)
    assert alert.fields["needed_bytes"] == TOO_MUCH
    assert alert.fields["free_bytes"] < TOO_MUCH
    assert alert.fields["step"] == 1
    assert "Training goes on" in alert.message
    assert "saving then goes on by itself" in alert.message
    assert pause.is_paused


def test_saving_goes_on_as_soon_as_there_is_room_and_that_is_told_once(pause, events, clock):
    pause.admits(1, TOO_MUCH)
    clock.advance(60)
    pause.admits(2, TOO_MUCH)

    assert pause.admits(3, 1000)
    assert pause.is_paused  # until it is committed
    pause.succeeded(3)
    pause.succeeded(4)

    assert [event.name for event in events] == ["checkpoint_paused", "checkpoint_resumed"]
    assert events[1].fields == {"step": 3, "paused_seconds": 60.0, "skipped_saves": 2}


def test_a_second_full_disk_is_alerted_anew(pause, events):
    for step in (1, 3):
        pause.admits(step, TOO_MUCH)
        assert pause.admits(step + 1, 1000)
        pause.succeeded(step + 1)

    assert [event.name for event in events] == ["checkpoint_paused", "checkpoint_resumed"] * 2


@pytest.mark.parametrize("problem", [DISK_FULL, OVER_QUOTA])
def test_a_save_that_found_the_disk_full_after_all_pauses_and_waits_longer_each_time(pause, events, clock, problem):
    waits = []
    for step in range(6):
        assert pause.admits(step, 1000)
        assert pause.failed(problem, step=step, needed_bytes=1000) is Verdict.PAUSED
        waited = 0
        while not pause.admits(step, 1000):
            clock.advance(10)
            waited += 10
        waits.append(waited)

    assert waits == [30, 60, 120, 240, 480, 600]
    assert [event.name for event in events] == ["checkpoint_paused"]
    assert problem.strerror in events[0].message


def test_after_a_success_the_wait_begins_small_again(pause, clock):
    for _ in range(2):
        pause.failed(DISK_FULL, step=1, needed_bytes=1000)
    pause.succeeded(2)
    pause.failed(DISK_FULL, step=3, needed_bytes=1000)

    clock.advance(30)
    assert pause.admits(4, 1000)


def test_where_room_could_be_made_the_save_is_tried_again_at_once_and_nobody_is_alerted(tmp_path, events):
    removable = [[1], [2], []]
    pause = DiskPause(tmp_path, make_room=lambda step: removable.pop(0), reserve_bytes=0)

    verdicts = [pause.failed(DISK_FULL, step=5, needed_bytes=1000) for _ in range(3)]

    assert verdicts == [Verdict.RETRY, Verdict.RETRY, Verdict.PAUSED]
    assert [event.name for event in events] == ["checkpoint_paused"]


def test_room_that_is_not_enough_is_no_reason_to_write_again(tmp_path):
    pause = DiskPause(tmp_path, make_room=lambda step: [1], reserve_bytes=0)

    assert pause.failed(DISK_FULL, step=5, needed_bytes=TOO_MUCH) is Verdict.PAUSED


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_other_errors_stay_errors(pause, events, number):
    problem = OSError(number, os.strerror(number))

    assert pause.failed(problem, step=1, needed_bytes=1000) is Verdict.NOT_FULL
    assert (events, pause.is_paused) == ([], False)


def test_a_pruning_that_fails_never_reaches_the_training(tmp_path, caplog):
    def broken(step: int) -> Any:
        raise RuntimeError("a policy of the user's own")

    pause = DiskPause(tmp_path, make_room=broken, reserve_bytes=0)

    assert not pause.admits(1, TOO_MUCH)
    assert pause.failed(DISK_FULL, step=1, needed_bytes=1000) is Verdict.PAUSED
    assert "no room could be made" in caplog.text


def test_a_disk_that_does_not_tell_is_tried(tmp_path):
    assert DiskPause(tmp_path / "not-there", make_room=lambda step: []).admits(1, TOO_MUCH)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("reserve_bytes", -1),
        ("reserve_bytes", "1GB"),
        ("first_wait", timedelta(0)),
        ("first_wait", 30),
        ("longest_wait", timedelta(seconds=1)),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path, setting, value):
    with pytest.raises(ConfigError, match=setting):
        DiskPause(tmp_path, make_room=lambda step: [], **{setting: value})
