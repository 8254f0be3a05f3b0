"""What a file system refuses is told with what to do about it."""

from __future__ import annotations

import errno
import os

import pytest

from production_ml.fault_tolerance.saving.order import write_error


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "Free disk space"),
        (errno.EROFS, "Mount the file system for writing"),
        (errno.EACCES, "Give this user the right"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Check the file system"),
    ],
)
def test_the_message_names_the_reason_the_meaning_and_the_cure(code, cure):
    message = str(write_error("Step 3 could not be written", OSError(code, os.strerror(code))))

    assert message.startswith(f"Step 3 could not be written: {os.strerror(code)}.")
    assert "newest committed checkpoint is unchanged" in message
    assert cure in message
