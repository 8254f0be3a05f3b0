"""`checkpoint export` writes what others read, and replaces nothing unasked."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from production_ml.core.errors import ConfigError, DamagedCheckpointError, InputFileError


def test_the_newest_is_exported_where_no_step_is_given(run, root, tmp_path):
    facts = json.loads(run("export", root, tmp_path / "m.safetensors", "--json").stdout)

    assert (facts["step"], facts["format"], facts["tensors"]) == (300, "safetensors", 2)
    assert set(safetensors.torch.load_file(tmp_path / "m.safetensors")) == {"weight", "bias"}
    assert "Wrote step 100" in run("export", root, 100, tmp_path / "m100.safetensors").stdout


def test_every_format_is_one_that_its_own_tool_reads(run, root, tmp_path):
    run("export", root, 200, tmp_path / "all.safetensors", "--with-optimizer")
    run("export", root, 200, tmp_path / "state.pt", "--to", "torch")
    run("export", root, 200, tmp_path / "dcp", "--to", "dcp")

    assert "optimizer.momentum_buffer.weight" in safetensors.torch.load_file(tmp_path / "all.safetensors")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    assert (tmp_path / "dcp" / ".metadata").is_file()


def test_a_file_that_is_there_is_replaced_only_when_that_is_said(run, root, tmp_path):
    (tmp_path / "m").write_text("mine")

    with pytest.raises(InputFileError, match=r"exists already\n.*--overwrite"):
        run("export", root, tmp_path / "m")
    assert (tmp_path / "m").read_text() == "mine"

    run("export", root, tmp_path / "m", "--overwrite")
    assert safetensors.torch.load_file(tmp_path / "m")


def test_a_damaged_checkpoint_is_not_exported(run, root, damage, tmp_path):
    damage(root, 300)

    with pytest.raises(DamagedCheckpointError):
        run("export", root, tmp_path / "m", "--with-optimizer")

    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "OUT = None: is missing"),
        (("x", "y"), "STEP = 'x'"),
        (("y", "--to", "torch", "--with-optimizer"), "anyway"),
    ],
)
def test_arguments_that_make_no_sense_are_bad_input(run, root, arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        run("export", root, *arguments)


def test_a_damaged_checkpoint_leads_to_the_next_command_and_to_an_earlier_step(run, root, damage, tmp_path):
    damage(root, 300)
    (root / "step-00000200" / "manifest.json").write_text("{}")

    with pytest.raises(DamagedCheckpointError, match=f"checkpoint verify {root} 300\n.*the next one is 100"):
        run("export", root, tmp_path / "m", "--to", "torch")
