"""Room is what an ordinary user may write, less what should stay free."""

from __future__ import annotations

import errno
import os

import pytest

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.saving.free_space import FreeSpace, free_space, full_disk_error
from production_ml.fault_tolerance.saving.order import write_error


def test_a_real_disk_has_the_room_that_the_system_says(tmp_path):
    space = free_space(tmp_path)
    status = os.statvfs(tmp_path)

    assert space is not None
    assert space.free_bytes == pytest.approx(status.f_bavail * status.f_frsize, abs=1 << 30)  # others write too
    assert 0 < space.reserve_bytes <= 256 << 20
    assert free_space(tmp_path, reserve_bytes=5).reserve_bytes == 5


@pytest.mark.parametrize("place", ["/proc", "/proc/1/no-such-place"])
def test_a_file_system_that_does_not_tell_is_not_called_full(place, tmp_path):
    assert free_space(tmp_path / place) is None


@pytest.mark.parametrize(
    ("space", "has_room"),
    [
        (FreeSpace(110, 10), True),
        (FreeSpace(109, 10), False),
        (FreeSpace(10**9, 10, has_free_files=False), False),
    ],
)
def test_room_is_for_the_bytes_the_reserve_and_a_file(space, has_room):
    assert space.has_room_for(100) is has_room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_however_deep_it_is_wrapped(number):
    problem = OSError(number, os.strerror(number))
    error = write_error("The checkpoint of step 1 could not be written", problem)
    error.__cause__ = problem

    assert full_disk_error(error).errno == number
    assert full_disk_error(problem).errno == number


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_that_another_process_met_is_known_by_its_number_alone(number):
    error = CheckpointWriteError("Rank 1 could not write its shard: no room.")
    error.errno = number

    assert full_disk_error(error).strerror == os.strerror(number)


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error = CheckpointWriteError("tensor 'extra.mask' cannot be saved.")
    error.__cause__ = error

    assert full_disk_error(error) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_other_errors_are_no_full_disk(number):
    assert full_disk_error(OSError(number, os.strerror(number))) is None
    assert full_disk_error(ValueError("No space left on device")) is None
