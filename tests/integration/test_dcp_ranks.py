"""Two ranks that know only DCP's API write and read verified checkpoints, and the command line takes them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory, verify_checkpoint

SCRIPT = Path(__file__).with_name("dcp_rank_script.py")
Ranks = Callable[..., list[dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def run_ranks() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Run a scenario on two ranks; gives what each found."""

    def run(root: Path, scenario: str) -> list[dict[str, Any]]:
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(2):
                environment = {**os.environ, **meeting_point, "OMP_NUM_THREADS": "1", "RANK": str(rank)}
                output = stack.enter_context(open(root / f"output-{rank}.txt", "w"))
                process = subprocess.Popen(
                    [sys.executable, str(SCRIPT), scenario, str(root)],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                processes.append(stack.enter_context(process))
                stack.callback(process.kill)
            exit_codes = [process.wait(timeout=100) for process in processes]
        assert exit_codes == [0, 0], "\n".join(path.read_text()[-3000:] for path in root.glob("output-*.txt"))
        return [json.loads((root / f"found-{scenario}-{rank}.json").read_text()) for rank in range(2)]

    return run


@pytest.fixture(scope="module")
def saved(run_ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scenario `save` left."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(root, "save")
    return root


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def production_ml(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from production_ml.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plain(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_dcp_saved_from_two_ranks_is_whole_and_verified_for_the_command_line(saved):
    directory = CheckpointDirectory(saved / "dcp")
    listed = json.loads(production_ml("checkpoint", "list", str(directory.path), "--verify", "--json").stdout)

    assert [(row["step"], row["world_size"], row["state"]) for row in listed] == [
        (step, 2, "good") for step in (1, 2, 3, 4)
    ]
    assert listed[0]["metrics"] == {"loss": 0.5}
    assert sorted(path.name for path in directory.path.iterdir()) == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    assert sorted(path.suffix for path in directory.committed(2).iterdir()) == [".json", ".safetensors", ".safetensors"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_consolidated_export_of_a_sharded_model_is_what_the_ranks_had(saved, tmp_path, step):
    done = production_ml("checkpoint", "export", str(saved / "dcp"), str(step), str(tmp_path / "model.safetensors"))

    assert done.returncode == 0, done.stderr
    expected = safetensors.torch.load_file(saved / f"step-{step}.safetensors")
    model, _ = plain(5)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_checkpoint_manager_of_one_process_loads_the_model_that_dcp_saved_from_two(saved):
    model, _ = plain(5)

    assert CheckpointManager(saved / "dcp").load_latest(model)["step"] == 4

    expected = safetensors.torch.load_file(saved / "step-4.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_what_one_process_saved_with_the_checkpoint_manager_is_loaded_by_dcp_into_two_shards(run_ranks, tmp_path):
    model, optimizer = plain(0)
    model(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()
    with CheckpointManager(tmp_path / "source") as manager:
        manager.save(model=model, optimizer=optimizer, step=1, epoch=7)

    found = run_ranks(tmp_path, "load")

    assert [rank["epoch"] for rank in found] == [7, 7]
    loaded = safetensors.torch.load_file(tmp_path / "loaded.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded[f"optimizer.exp_avg.{name}"], optimizer.state[parameter]["exp_avg"]), name


def test_what_dcp_saved_from_two_ranks_goes_into_dcp_s_own_directory_and_back(saved, run_ranks, tmp_path):
    """Ours from two ranks → a DCP directory → ours → FSDP2 on two ranks."""
    out, source = str(tmp_path / "out"), str(tmp_path / "source")
    for arguments in (
        ("export", str(saved / "dcp"), "4", out, "--to", "dcp"),
        ("import", out, source, "--step", "4", "--optimizer-class", "AdamW"),
    ):
        done = production_ml("checkpoint", *arguments)
        assert done.returncode == 0, done.stderr

    assert run_ranks(tmp_path, "load")[0]["epoch"] == 3
    loaded = safetensors.torch.load_file(tmp_path / "loaded.safetensors")
    expected = safetensors.torch.load_file(saved / "step-4.safetensors")
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_flipped_byte_in_one_rank_s_shard_is_damage_on_both_ranks(copy, run_ranks):
    shard = copy / "dcp" / "step-00000004" / "rank-00001.safetensors"
    flip_last_bit(shard)

    found = run_ranks(copy, "load-damaged")

    assert [rank["kind"] for rank in found] == ["DamagedCheckpointError"] * 2
    assert all(f"{shard}: tensor " in rank["error"] for rank in found)
    done = production_ml("checkpoint", "verify", str(copy / "dcp"))
    assert done.returncode == 3
    assert f"{shard}: tensor" in done.stdout


def test_what_one_rank_cannot_save_is_told_on_both_and_leaves_nothing(tmp_path, run_ranks):
    found = run_ranks(tmp_path, "refuse")

    assert [rank["kind"] for rank in found] == ["CheckpointWriteError"] * 2
    assert all("odd is a slice" in rank["error"] for rank in found)
    directory = CheckpointDirectory(tmp_path / "dcp")
    assert directory.steps() == []
    assert not list(directory.path.iterdir())


def test_each_step_that_dcp_saved_is_sound(saved):
    directory = CheckpointDirectory(saved / "dcp")

    assert [list(verify_checkpoint(directory, step)) for step in directory.steps()] == [[]] * 4
