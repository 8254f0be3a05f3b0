"""Attempts never write into each other's files, also over several launches of one run."""

from __future__ import annotations

import pytest

from production_ml.core.errors import RunDirectoryError
from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles, next_attempt


def test_the_first_attempt_is_0(tmp_path):
    assert next_attempt(tmp_path / "logs") == 0


def test_a_second_launch_continues_the_count(tmp_path):
    for attempt in (0, 1, 11):
        AttemptFiles(tmp_path, attempt).directory.mkdir()
    (tmp_path / "rank-00000.jsonl").touch()

    assert next_attempt(tmp_path) == 12


def test_no_two_ranks_or_attempts_share_a_file(tmp_path):
    paths = [
        path
        for attempt in range(2)
        for rank in range(2)
        for files in [AttemptFiles(tmp_path, attempt)]
        for path in (files.stdout(rank), files.stderr(rank), files.error(rank))
    ]

    assert len(set(paths)) == len(paths) == 12


def test_a_log_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(RunDirectoryError, match="file/logs"):
        next_attempt(tmp_path / "file" / "logs")
