"""A file gives the bytes that are in it, and says that it has no more by giving fewer."""

from __future__ import annotations

import os

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource, FileSource

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def source(tmp_path) -> ByteSource:
    (tmp_path / "kept").write_bytes(CONTENT)
    return FileSource(tmp_path / "kept", step=1)


@pytest.mark.parametrize(
    ("position", "size", "found"), [(0, 256, 256), (4000, 5000, 5000), (10_000, 500, 240), (20_000, 5, 0), (7, 0, 0)]
)
def test_any_piece_is_read_and_what_is_not_there_is_told_by_its_length(source, position, size, found):
    buffer = bytearray(b"." * size)

    assert source.size_bytes == len(CONTENT)
    source.prefetch(position, size)
    assert source.readinto(position, memoryview(buffer)) == found
    assert bytes(buffer) == CONTENT[position : position + size].ljust(size, b".")
    source.close()


def test_a_source_has_a_name_for_messages(source):
    assert source.name.endswith("kept")
    source.close()


@pytest.mark.parametrize(("name", "problem"), [("absent", "missing"), (".", "directory")])
def test_a_file_that_is_not_there_and_a_directory_in_its_place_are_damage(tmp_path, name, problem):
    def read_first_byte() -> None:
        source = FileSource(tmp_path / name, step=4)
        try:
            source.readinto(0, memoryview(bytearray(1)))
        finally:
            source.close()

    with pytest.raises(DamagedCheckpointError, match=problem) as raised:
        read_first_byte()

    assert raised.value.step == 4


def test_a_pipe_in_the_place_of_a_shard_is_damage_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DamagedCheckpointError, match="not a regular file"):
        FileSource(tmp_path / "pipe", step=4)
