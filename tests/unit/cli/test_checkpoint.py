"""`checkpoint list` and `checkpoint verify` say what is there and what is damaged, in words, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from production_ml.cli import checkpoint
from production_ml.core.errors import ExitCode, InputFileError


@pytest.fixture
def run():
    app = typer.Typer()
    checkpoint.register(app)

    def invoke(*arguments: str):
        result = CliRunner().invoke(app, ["checkpoint", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def root(tmp_path: Path) -> Path:
    from torch import nn

    from production_ml.fault_tolerance import CheckpointManager

    with CheckpointManager(tmp_path / "checkpoints") as manager:
        for step in (100, 200):
            manager.save(model=nn.Linear(2, 2), step=step, metrics={"loss": 1 / step, "odd": float("nan")})
    return tmp_path / "checkpoints"


def shard(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}" / "rank-00000.safetensors"


def damage(root: Path, step: int) -> None:
    data = bytearray(shard(root, step).read_bytes())
    data[-1] ^= 1
    shard(root, step).write_bytes(data)


def test_list_shows_each_step_with_its_metrics(run, root):
    listed = json.loads(run("list", str(root), "--json").stdout, parse_constant=pytest.fail)

    assert [row["step"] for row in listed] == [100, 200]
    assert listed[0]["metrics"] == {"loss": 0.01, "odd": "NaN"}
    assert listed[0]["size_bytes"] == shard(root, 100).stat().st_size
    assert "loss=0.005" in run("list", str(root)).stdout


def test_list_names_a_manifest_that_cannot_be_read(run, root):
    (root / "step-00000200" / "manifest.json").write_text("{}")

    listed = json.loads(run("list", str(root), "--json").stdout)

    assert [row["problem"] is None for row in listed] == [True, False]
    assert "damaged" in run("list", str(root)).stdout


def test_sound_checkpoints_are_told_so(run, root):
    result = run("verify", str(root))

    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == ["step 100: sound", "step 200: sound"]


def test_damage_is_named_by_file_and_tensor_and_ends_with_its_own_exit_code(run, root):
    damage(root, 200)

    result, as_json = run("verify", str(root)), run("verify", str(root), "--json")

    assert result.exit_code == as_json.exit_code == ExitCode.DAMAGED
    assert "step 200: DAMAGED" in result.stdout
    [found] = json.loads(as_json.stdout)[1]["damage"]
    assert (found["file"], found["tensor"]) == (str(shard(root, 200)), "model.bias")
    assert f"{found['file']}: tensor 'model.bias' does not match its hash" in result.stdout


def test_a_check_of_nothing_does_not_pass(run, tmp_path):
    with pytest.raises(InputFileError, match="nothing to verify"):
        run("verify", str(tmp_path))


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_directory_that_is_not_there_is_bad_input(run, tmp_path, command):
    with pytest.raises(InputFileError, match="does not exist"):
        run(command, str(tmp_path / "absent"))
