"""An order reaches another process as it is, and what a file system refuses is told with what to do about it."""

from __future__ import annotations

import errno
import json
import os

import pytest

from production_ml.fault_tolerance.saving.order import Holding, ShardContents, write_error


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
    assert write_error("Step 3", OSError(code, os.strerror(code))).errno == code


def test_contents_come_out_of_json_laid_out_as_they_went_in():
    contents = ShardContents.of(
        (
            Holding("b", "b", "U8", (3,), (0,), (3,)),
            Holding("a", "a", "F32", (4, 2), (2, 0), (2, 2)),
            Holding("tied", "a", "F32", (4, 2), (2, 0), (2, 2)),
            Holding("scalar", "scalar", "C128", (), (), ()),
        )
    )

    assert ShardContents.from_json(json.loads(json.dumps(contents.to_json()))) == contents
    assert set(contents.layout.extents) == {"a", "b", "scalar"}
