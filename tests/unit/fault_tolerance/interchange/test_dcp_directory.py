"""Directories of torch.distributed.checkpoint: written for its own `load`, and read without unpickling freely."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from production_ml.core.errors import CheckpointWriteError, ConfigError, DamagedCheckpointError, InputFileError
from production_ml.fault_tolerance.interchange.dcp_directory import DcpDirectory, write_dcp_directory
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig
from production_ml.fault_tolerance.interchange.importing import commit_import, open_source

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")


def test_dcp_loads_what_was_exported_into_model_and_optimizer(saved, training, fresh, tmp_path):
    write_dcp_directory(saved, 300, tmp_path / "dcp")

    model, optimizer = fresh()
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer), "epoch": 0}
    dcp.load(state, checkpoint_id=tmp_path / "dcp")
    set_optimizer_state_dict(model, optimizer, state["optimizer"])

    assert state["epoch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), training[0].parameters(), strict=True))
    for mine, theirs in zip(model.parameters(), training[0].parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], training[1].state[theirs]["exp_avg"])


def test_a_large_state_is_spread_over_files_that_are_written_one_by_one(cut, tmp_path):
    tensors = {f"w{number}": torch.full((10 << 20,), float(number)) for number in range(4)}

    write_dcp_directory(cut(tensors), 1, tmp_path / "dcp")

    assert len(list((tmp_path / "dcp").glob("*.distcp"))) >= 2
    found = {"model": {name: torch.empty(10 << 20) for name in tensors}}
    dcp.load(found, checkpoint_id=tmp_path / "dcp")
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in tensors.items())


def test_a_directory_that_is_there_is_not_written_into(saved, tmp_path):
    with pytest.raises(InputFileError, match="exists already"):
        write_dcp_directory(saved, 300, saved.path)


def test_a_damaged_tensor_or_a_full_disk_leaves_no_directory(saved, flip, tmp_path, listing, file_size_limit):
    with file_size_limit(2000), pytest.raises(CheckpointWriteError, match="File too large"):
        write_dcp_directory(saved, 300, tmp_path / "dcp")
    flip(saved)
    with pytest.raises(DamagedCheckpointError):
        write_dcp_directory(saved, 300, tmp_path / "dcp")

    assert listing(tmp_path) == ["saved"]


def test_a_value_that_is_no_plain_one_is_refused_by_name_and_left_out_when_it_is_not_wanted(tmp_path):
    dcp.save({"model": {"w": torch.ones(2)}, "odd": slice(3)}, checkpoint_id=tmp_path / "dcp")

    with pytest.raises(InputFileError, match=r"'odd' is more than a tensor or plain value"):
        DcpDirectory(tmp_path / "dcp").sort(ImportConfig())

    assert list(DcpDirectory(tmp_path / "dcp").sort(ImportConfig(model_only=True)).tensors) == ["model.w"]


def test_a_data_file_that_is_cut_short_is_noticed(tmp_path, cut):
    dcp.save({"model": {"w": torch.arange(1000.0)}}, checkpoint_id=tmp_path / "dcp")
    [file] = (tmp_path / "dcp").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-3000])
    directory = cut({"x": torch.ones(1)})

    with pytest.raises(InputFileError, match=r"model\.w"):
        commit_import(open_source(tmp_path / "dcp", "dcp", ImportConfig()), directory, 2)

    assert directory.steps() == [1]


def test_a_disk_that_fills_up_within_a_tensor_is_told_as_that(cut, tmp_path, listing, file_size_limit):
    directory = cut({"w": torch.ones(1 << 20)})

    with file_size_limit(1 << 20), pytest.raises(CheckpointWriteError, match="File too large"):
        write_dcp_directory(directory, 1, tmp_path / "dcp")

    assert listing(tmp_path) == ["cut"]


def test_a_flipped_bit_in_the_bytes_of_a_value_is_bad_input_or_no_matter_and_never_another_error(tmp_path, rng):
    dcp.save({"model": {"w": torch.ones(2)}, "epoch": 3}, checkpoint_id=tmp_path / "dcp")
    [file] = (tmp_path / "dcp").glob("*.distcp")
    whole = file.read_bytes()
    refused = 0

    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            DcpDirectory(tmp_path / "dcp").sort(ImportConfig())
        except (InputFileError, ConfigError, CheckpointWriteError):
            refused += 1

    assert refused > 0
