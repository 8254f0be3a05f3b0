"""An output has its name when it is whole, or it is not there."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError, InputFileError
from production_ml.fault_tolerance.interchange.output import (
    durable_directory,
    durable_file,
    what_broke_it_off,
    write_all,
)


def test_a_file_appears_whole(tmp_path):
    with durable_file(tmp_path / "out") as file:
        write_all(file, b"all of it")
        assert not (tmp_path / "out").exists()

    assert (tmp_path / "out").read_bytes() == b"all of it"


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_output_leaves_nothing(tmp_path, problem, listing):
    def interrupted_file() -> None:
        with durable_file(tmp_path / "out") as file:
            write_all(file, b"half")
            raise problem

    def interrupted_directory() -> None:
        with durable_directory(tmp_path / "dir") as written:
            (written / "half").touch()
            raise problem

    for interrupted in (interrupted_file, interrupted_directory):
        with pytest.raises(problem):
            interrupted()
    assert listing(tmp_path) == []


def test_a_file_system_that_refuses_is_a_write_error_with_a_cure(tmp_path, file_size_limit, listing):
    with (
        file_size_limit(10),
        pytest.raises(CheckpointWriteError, match=r"File too large.*\n.*no checkpoint was changed"),
        durable_file(tmp_path / "out") as file,
    ):
        write_all(file, bytes(100))

    assert listing(tmp_path) == []


def test_a_place_that_cannot_be_is_bad_input(tmp_path):
    with pytest.raises(InputFileError, match="is not a directory"), durable_file(tmp_path / "absent" / "out"):
        pass
    with pytest.raises(InputFileError, match="is a directory"), durable_file(tmp_path):
        pass
    with pytest.raises(InputFileError, match="exists already"), durable_directory(tmp_path):
        pass


@pytest.mark.parametrize("is_overtaken", [False, True], ids=["device", "pipe"])
def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path, is_overtaken):
    target = Path("/dev/null")
    if is_overtaken:
        target = tmp_path / "pipe"
        os.mkfifo(target)

    with pytest.raises(InputFileError, match="is a device or pipe"), durable_file(target):
        pass

    assert not target.is_file()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_what_breaks_a_torch_save_off_comes_out_as_it_is(problem):
    class Breaking(io.BytesIO):
        def write(self, data):
            if len(data) > 1000:
                raise problem
            return super().write(data)

    with pytest.raises(type(problem) if isinstance(problem, OSError) else problem), what_broke_it_off():
        torch.save(torch.ones(1000), Breaking())


def test_an_error_that_hides_nothing_comes_out_as_it_is():
    with pytest.raises(RuntimeError, match="mine"), what_broke_it_off():
        raise RuntimeError("mine")
