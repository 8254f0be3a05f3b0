"""An image is read up to the end of the shard, and reading it outlives its owner's changes."""

from __future__ import annotations

import os

from production_ml.fault_tolerance.memory_copies.image_source import ImageSource


def test_it_ends_where_the_shard_ends(copy_of):
    copy = copy_of(1)
    source = ImageSource("memory", copy.descriptor, copy.size_bytes)
    data = memoryview(bytearray(100))

    assert source.size_bytes == copy.size_bytes < os.fstat(copy.descriptor).st_size
    assert source.readinto(0, data) == 100
    source.close()


def test_an_image_that_became_shorter_gives_fewer_bytes_and_no_signal(copy_of):
    copy = copy_of(1)
    source = ImageSource("memory", copy.descriptor, copy.size_bytes)

    os.ftruncate(copy.descriptor, 10)

    assert source.readinto(0, memoryview(bytearray(100))) == 10
    source.close()
