"""Bytes are the same wherever they come from, and a source that has no more says so by giving fewer."""

from __future__ import annotations

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource, FileSource, MemorySource

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=["file", "memory"])
def source(request, tmp_path) -> ByteSource:
    if request.param == "memory":
        return MemorySource("kept", memoryview(CONTENT))
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


def test_memory_is_let_go_when_the_source_is_closed():
    memory = bytearray(10)
    source = MemorySource("kept", memoryview(memory))
    source.close()

    memory.append(1)  # refused as long as anybody looks into it


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
