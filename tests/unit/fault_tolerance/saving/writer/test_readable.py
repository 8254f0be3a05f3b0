"""A wait ends with the first descriptor that has something to read, whatever its number, and with the timeout."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from production_ml.fault_tolerance.saving.writer.readable import await_readable


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


@pytest.fixture
def high_number(pipe: tuple[int, int]) -> Iterator[int]:
    """The reading end under a number that select() refuses."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2000, limits[0]), limits[1]))
    descriptor = fcntl.fcntl(pipe[0], fcntl.F_DUPFD_CLOEXEC, 1500)
    yield descriptor
    os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nothing_to_read_is_told_when_the_time_is_over(pipe):
    assert await_readable([pipe[0]], 0) == set()


def test_what_can_be_read_is_told_whatever_its_number(pipe, high_number):
    os.write(pipe[1], b"x")

    assert await_readable([high_number]) == {high_number}


def test_the_end_of_the_other_side_is_something_to_read():
    reading, writing = os.pipe()
    os.close(writing)

    assert await_readable([reading]) == {reading}
    os.close(reading)
