"""One file holds the model of any world size, under its plain names, for any tool to open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch

from production_ml.core.errors import CheckpointWriteError, DamagedCheckpointError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated


def test_the_file_s_tensors_are_the_model_s_state_as_they_are(saved, training, fresh, tmp_path):
    exported = write_consolidated(saved, 300, tmp_path / "model.safetensors")

    model, _ = fresh()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), training[0].state_dict().values(), strict=True)
    )
    assert exported.tensors == len(model.state_dict())
    assert exported.size_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_the_optimizer_stands_beside_the_model_when_asked_for(saved, training, tmp_path):
    write_consolidated(saved, 300, tmp_path / "all.safetensors", with_optimizer=True)

    found = safetensors.torch.load_file(tmp_path / "all.safetensors")
    state = training[1].state[training[0][0].weight]
    assert torch.equal(found["optimizer.exp_avg.0.weight"], state["exp_avg"])
    assert torch.equal(found["0.weight"], training[0][0].weight)
    with safetensors.safe_open(tmp_path / "all.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["production_ml.step"] == "300"


def test_a_sharded_tensor_is_one_again(cut, tmp_path):
    whole = torch.arange(12.0).reshape(4, 3)
    directory = cut({"w": {(0, 0): whole[:3], (3, 0): whole[3:]}, "b": torch.ones(2, dtype=torch.int8)}, w=(4, 3))

    write_consolidated(directory, 1, tmp_path / "w.safetensors")

    found = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["w"], whole)
    assert torch.equal(found["b"], torch.ones(2, dtype=torch.int8))


def test_a_damaged_tensor_leaves_no_file(saved, flip, tmp_path, listing):
    flip(saved)

    with pytest.raises(DamagedCheckpointError, match="does not match its hash"):
        write_consolidated(saved, 300, tmp_path / "model.safetensors", with_optimizer=True)

    assert listing(tmp_path) == ["saved"]


def test_an_older_file_stays_until_the_new_one_is_whole(saved, tmp_path, file_size_limit, listing):
    target = tmp_path / "model.safetensors"
    target.write_text("older")

    with file_size_limit(100), pytest.raises(CheckpointWriteError, match="File too large"):
        write_consolidated(saved, 300, target)
    assert target.read_text() == "older"

    write_consolidated(saved, 300, target)
    assert safetensors.torch.load_file(target)
    assert listing(tmp_path) == ["model.safetensors", "saved"]


def test_a_type_that_other_tools_would_misread_is_refused_by_name(cut, tmp_path):
    directory = cut({"w": torch.ones(2, dtype=torch.complex128)})

    with pytest.raises(CheckpointWriteError, match="'w' is C128"):
        write_consolidated(directory, 1, tmp_path / "w.safetensors")


def test_two_tensors_of_one_name_are_refused(cut, tmp_path):
    directory = cut({"model.w": torch.ones(1), "w": torch.zeros(1)})
    manifest = directory.manifest(1)
    manifest.values["model"].clear()
    manifest.values["model"]["w"] = {"$tensor": "model.w"}
    directory.commit(DirectorySave(directory.committed(1).rename(directory.incomplete(1, "0").path)), manifest)

    with pytest.raises(CheckpointWriteError, match="'w' and another tensor"):
        write_consolidated(directory, 1, tmp_path / "w.safetensors", with_optimizer=True)


_MEMORY = """
import resource, sys
from pathlib import Path
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated
directory = CheckpointDirectory(Path(sys.argv[1]))
directory.manifest(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_consolidated(directory, 1, sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "torch" in sys.modules)
"""


def test_an_export_holds_one_tensor_at_a_time_and_needs_no_torch(cut, tmp_path):
    tensor_bytes = 8 << 20
    directory = cut({f"w{number}": torch.full((tensor_bytes // 4,), float(number)) for number in range(8)})
    command = [sys.executable, "-c", _MEMORY, str(directory.path), str(tmp_path / "model.safetensors")]

    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))

    grown_bytes, has_torch = done.stdout.split()
    assert int(grown_bytes) < 3 * tensor_bytes
    assert has_torch == "False"


def test_what_is_no_tensor_is_left_out_only_where_it_has_no_place(tmp_path):
    class Counting(torch.nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(model=Counting(1, 1), step=1)
    directory = CheckpointDirectory(tmp_path / "checkpoints")

    alone = write_consolidated(directory, 1, tmp_path / "model.safetensors")
    everything = write_consolidated(directory, 1, tmp_path / "all.safetensors", with_optimizer=True)

    assert (alone.left_out, everything.left_out) == (("_extra_state",), ())
