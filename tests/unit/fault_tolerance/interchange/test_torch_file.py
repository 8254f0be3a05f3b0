"""`torch.save` files: written for `weights_only=True`, and read so and no other way."""

from __future__ import annotations

import pickle

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError, ConfigError, DamagedCheckpointError, InputFileError
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig
from production_ml.fault_tolerance.interchange.torch_file import read_torch_file, write_torch_file


def test_the_file_goes_into_model_and_optimizer_as_usual(saved, training, fresh, tmp_path):
    write_torch_file(saved, 300, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model, optimizer = fresh()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), training[0].parameters(), strict=True))
    for mine, saved_one in zip(model.parameters(), training[0].parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], training[1].state[saved_one]["exp_avg"])
    assert (state["step"], state["metrics"], state["epoch"], state["pair"][1]) == (300, {"loss": 0.25}, 3, "a")
    assert torch.equal(state["table"], torch.arange(6).reshape(2, 3))


def test_each_tensor_has_a_storage_of_its_own(saved, tmp_path):
    write_torch_file(saved, 300, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)

    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state["model"].values())


def test_a_damaged_tensor_leaves_no_file(saved, flip, tmp_path, listing):
    flip(saved)

    with pytest.raises(DamagedCheckpointError):
        write_torch_file(saved, 300, tmp_path / "state.pt")

    assert listing(tmp_path) == ["saved"]


def test_a_file_that_holds_code_is_refused_by_the_name_of_it_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "went-off"), "w"))

    torch.save({"model": {"w": torch.ones(1)}, "bomb": Bomb()}, tmp_path / "bomb.pt")

    with pytest.raises(InputFileError, match=r"io\.open|builtins\.open") as raised:
        read_torch_file(tmp_path / "bomb.pt", ImportConfig())

    assert "run any code" in str(raised.value)
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(3), b"PK\x03\x04 and no more"])
def test_what_is_no_such_file_is_bad_input(tmp_path, content):
    (tmp_path / "odd.pt").write_bytes(content)

    with pytest.raises(InputFileError, match=r"odd\.pt"):
        read_torch_file(tmp_path / "odd.pt", ImportConfig())


def test_a_tensor_alone_is_no_state(tmp_path):
    torch.save(torch.ones(2), tmp_path / "one.pt")

    with pytest.raises(InputFileError, match="holds a Tensor, not a state dict"):
        read_torch_file(tmp_path / "one.pt", ImportConfig())


def test_a_disk_that_fills_up_within_a_tensor_is_told_as_that(cut, tmp_path, listing, file_size_limit):
    directory = cut({"w": torch.ones(1 << 20)})

    # The tensor fits in its nameless file; with torch's own headers it does not.
    with file_size_limit(4 << 20), pytest.raises(CheckpointWriteError, match="File too large"):
        write_torch_file(directory, 1, tmp_path / "state.pt")

    assert listing(tmp_path) == ["cut"]


def test_a_flipped_bit_anywhere_is_bad_input_or_no_matter_and_never_another_error(tmp_path, rng):
    path = tmp_path / "state.pt"
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    refused = 0

    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read_torch_file(path, ImportConfig())
        except (InputFileError, ConfigError, CheckpointWriteError):
            refused += 1

    assert refused > len(whole) // 4
