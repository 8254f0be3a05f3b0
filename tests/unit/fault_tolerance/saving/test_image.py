"""An image is memory that another process can see, reused until it is too small, and let go of for good."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.shard_layout import PAGE_BYTES
from production_ml.fault_tolerance.saving.free_space import full_disk_error
from production_ml.fault_tolerance.saving.image import ShardImage


@pytest.fixture
def image():
    image = ShardImage()
    yield image
    image.close()


def test_it_has_room_for_whole_pages_and_to_spare_and_moves_only_to_grow(image):
    assert len(image.data) == 0
    assert image.resize(5000)
    room = len(image.data)
    assert room % PAGE_BYTES == 0
    image.data[0] = 7

    assert not image.resize(5000 + 8 * PAGE_BYTES)  # an extra that is new
    assert not image.resize(room)
    assert not image.resize(10)
    assert image.data[0] == 7
    assert image.resize(room + 1)
    assert not any(image.data)


def test_what_it_spares_is_a_small_share_of_a_large_shard(image):
    image.resize(64 << 20)

    assert 64 << 20 < len(image.data) < 65 << 20


def test_another_process_sees_what_is_written_into_it(image):
    image.resize(4096)
    image.data[:5] = b"hello"
    script = (
        "import sys; from production_ml.fault_tolerance.saving.image import ShardImage;"
        "image = ShardImage(int(sys.argv[1])); print(bytes(image.data[:5]), len(image.data)); image.data[:3] = b'bye'"
    )

    ran = subprocess.run(
        [sys.executable, "-c", script, str(image.descriptor)],
        pass_fds=[image.descriptor],
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout.split() == ["b'hello'", str(len(image.data))]
    assert bytes(image.data[:5]) == b"byelo"


def test_a_program_that_the_trainer_starts_gets_no_copy_of_it(image):
    assert not os.get_inheritable(image.descriptor)


def test_memory_that_is_not_there_is_told_before_it_is_touched(image, file_size_limit):
    with file_size_limit(4096), pytest.raises(OSError, match="File too large"):
        image.resize(8192)

    assert len(image.data) == 0
    assert image.resize(8192)
    image.data[-1] = 1


def test_memory_that_is_short_is_not_taken_for_a_full_disk(image, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the kernel says it of shared memory

    monkeypatch.setattr(os, "posix_fallocate", refuse)

    with pytest.raises(OSError, match="Cannot allocate memory") as raised:
        image.resize(8192)

    assert full_disk_error(raised.value) is None


def test_images_that_are_closed_or_forgotten_leave_no_descriptor():
    before = set(Path("/proc/self/fd").iterdir())

    closed, forgotten = ShardImage(), ShardImage()
    closed.resize(4096)
    forgotten.resize(4096)
    closed.close()
    del forgotten

    assert set(Path("/proc/self/fd").iterdir()) <= before
