"""What was exported comes back as it was, in every format, as a committed and verified checkpoint."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError, ConfigError, InputFileError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory, verify_checkpoint
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated
from production_ml.fault_tolerance.interchange.dcp_directory import write_dcp_directory
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig
from production_ml.fault_tolerance.interchange.importing import commit_import, open_source
from production_ml.fault_tolerance.interchange.torch_file import write_torch_file


def export(saved, kind, target):
    if kind == "safetensors":
        return write_consolidated(saved, 300, target, with_optimizer=True)
    return {"torch": write_torch_file, "dcp": write_dcp_directory}[kind](saved, 300, target)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "dcp"])
def test_a_training_goes_on_from_what_was_exported_and_imported(kind, saved, training, fresh, tmp_path):
    export(saved, kind, tmp_path / f"out.{kind}")
    directory = CheckpointDirectory(tmp_path / "imported")

    source = open_source(tmp_path / f"out.{kind}", kind, ImportConfig())
    commit_import(source, directory, source.found.step)

    assert list(verify_checkpoint(directory, 300)) == []
    model, optimizer = fresh()
    state = CheckpointManager(directory.path).load_latest(model, optimizer)
    assert (state["step"], state["metrics"], state["epoch"], state["pair"][1]) == (300, {"loss": 0.25}, 3, "a")
    for mine, theirs in zip(model.state_dict().values(), training[0].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.parameters(), training[0].parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg_sq"], training[1].state[theirs]["exp_avg_sq"])


@pytest.mark.parametrize("kind", ["safetensors", "torch", "dcp"])
def test_the_model_alone_comes_in_without_the_rest(kind, saved, fresh, tmp_path):
    export(saved, kind, tmp_path / f"out.{kind}")
    directory = CheckpointDirectory(tmp_path / "imported")

    manifest = commit_import(open_source(tmp_path / f"out.{kind}", None, ImportConfig(model_only=True)), directory, 1)

    assert set(manifest.tensors) == {f"model.{name}" for name in fresh()[0].state_dict()}
    assert CheckpointManager(directory.path).load_latest(fresh()[0])["step"] == 1


def test_a_step_that_is_there_is_not_replaced(saved, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    before = saved.manifest(300)

    with pytest.raises(InputFileError, match="exists already"):
        commit_import(open_source(tmp_path / "w.pt", None, ImportConfig()), saved, 300)

    assert saved.manifest(300) == before


def test_what_a_checkpoint_cannot_hold_is_named_and_nothing_is_left(tmp_path, listing):
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "w.pt")
    directory = CheckpointDirectory(tmp_path / "imported")

    with pytest.raises(CheckpointWriteError, match=r"model\.w"):
        commit_import(open_source(tmp_path / "w.pt", "torch", ImportConfig()), directory, 1)

    assert listing(directory.path) == []


def test_a_format_that_is_not_known_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="known formats: safetensors, dcp, torch"):
        open_source(tmp_path, "onnx", ImportConfig())


def test_a_safetensors_file_is_known_by_what_is_in_it_whatever_its_name(saved, fresh, tmp_path):
    write_consolidated(saved, 300, tmp_path / "weights")

    found = open_source(tmp_path / "weights", None, ImportConfig()).found

    assert set(found.tensors) == {f"model.{name}" for name in fresh()[0].state_dict()}


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_file_that_is_not_there_is_bad_input_with_a_cure(tmp_path, kind):
    with pytest.raises(InputFileError, match=r"does not exist\nName a"):
        open_source(tmp_path / "absent", kind, ImportConfig())
