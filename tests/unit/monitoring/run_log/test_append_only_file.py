"""A file takes whole records or none, waits for room on a full disk, and says so once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from production_ml.monitoring.run_log import append_only_file
from production_ml.monitoring.run_log.append_only_file import AppendOnlyFile


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AppendOnlyFile]:
    file = AppendOnlyFile(tmp_path / "a.runlog")
    file.create()
    yield file
    file.abandon()


def test_a_record_is_in_the_file_when_append_returns(file):
    file.append(b"one")
    file.append(b"two")

    assert file.path.read_bytes() == b"onetwo"


def test_no_two_writers_share_a_file(file):
    other, third = AppendOnlyFile(file.path), AppendOnlyFile(file.path)
    other.create()
    third.create()
    other.append(b"x")
    other.abandon()
    third.abandon()

    assert [file.path.name, other.path.name, third.path.name] == ["a.runlog", "a.2.runlog", "a.3.runlog"]
    assert file.path.read_bytes() == b""


def test_records_wait_for_room_and_come_in_order_without_a_torn_one(file, caplog, file_size_limit):
    records = [b"%03d" % number for number in range(500)]
    with file_size_limit(100):
        kept = [file.append(record) for record in records]
        on_disk_meanwhile = file.path.read_bytes()
    file.close()

    assert all(kept)
    assert on_disk_meanwhile == b"".join(records[:33])
    assert file.path.read_bytes() == b"".join(records)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "cannot be written" in caplog.messages[0]
    assert "written again; none is lost" in caplog.messages[1]


def test_every_outage_is_warned_of_once(file, caplog, file_size_limit):
    for size in (10, 20):
        with file_size_limit(size):
            for _ in range(20):
                file.append(b"xyz")
        while file.written_bytes % 60:
            file.append(b"xyz")

    assert len([message for message in caplog.messages if "cannot be written" in message]) == 2


def test_when_too_many_wait_the_newest_are_lost_and_counted(file, caplog, monkeypatch, file_size_limit):
    monkeypatch.setattr(append_only_file, "_BACKLOG_RECORDS", 10)
    with file_size_limit(3):
        kept = [file.append(b"%03d" % number) for number in range(20)]
    file.append(b"end")

    assert kept == [True] * 11 + [False] * 9
    assert file.path.read_bytes() == b"".join(b"%03d" % number for number in range(11)) + b"end"
    assert "9 records that came while too many waited are lost" in caplog.messages[-1]


def test_what_never_finds_room_is_counted_at_the_end(file, caplog, file_size_limit):
    with file_size_limit(1):
        file.append(b"one")
        file.append(b"two")
        file.close()

    assert "2 records never found room" in caplog.messages[-1]


def test_a_file_that_could_not_be_made_is_made_when_that_is_possible(tmp_path, caplog):
    file = AppendOnlyFile(tmp_path / "later" / "a.runlog")
    file.append(b"one")
    (tmp_path / "later").mkdir()
    file.append(b"two")
    file.close()

    assert (tmp_path / "later" / "a.runlog").read_bytes() == b"onetwo"
