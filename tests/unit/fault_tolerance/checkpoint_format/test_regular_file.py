"""What is no file is refused at once, and never waited for."""

from __future__ import annotations

import errno
import os

import pytest

from production_ml.fault_tolerance.checkpoint_format.regular_file import open_regular


def test_a_file_is_opened_to_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")

    with open(open_regular(tmp_path / "file"), "rb") as file:
        assert file.read() == b"abc"


def test_a_pipe_a_device_and_a_directory_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    found = {}
    for name in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        with pytest.raises(OSError) as refused:  # noqa: PT011 - which one is what is compared
            open_regular(name)
        found[name] = refused.value.errno

    assert list(found.values()) == [errno.ENXIO, errno.ENXIO, errno.EISDIR]
