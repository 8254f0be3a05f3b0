"""Several ranks save and load as one, and a checkpoint of one world size or wrapper loads into another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance import CheckpointManager


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


SCRIPT = Path(__file__).with_name("checkpoint_rank_script.py")
Ranks = Callable[..., list[dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """Run a scenario on several ranks; gives what each found."""

    def run(scenario: str, world_size: int = 2, exit_codes: list[int] | None = None) -> list[dict[str, Any]]:
        command = [sys.executable, str(SCRIPT), scenario, str(tmp_path)]
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(world_size):
                environment = {**os.environ, **meeting_point, "OMP_NUM_THREADS": "1", "RANK": str(rank)}
                output = stack.enter_context(open(tmp_path / f"output-{scenario}-{rank}.txt", "w"))
                process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
                processes.append(stack.enter_context(process))
                stack.callback(process.kill)
            ended = [process.wait(timeout=100) for process in processes]
        outputs = [path.read_text() for path in sorted(tmp_path.glob(f"output-{scenario}-*.txt"))]
        assert ended == (exit_codes or [0] * world_size), "\n".join(outputs)
        reports = [tmp_path / f"found-{scenario}-{rank}.json" for rank, code in enumerate(ended) if code == 0]
        return [json.loads(report.read_text()) for report in reports]

    return run


def plain(seed: int, width: int = 7) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimizer.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        tensors |= {f"{index}.{key}": value.clone() for key, value in optimizer.state[parameter].items()}
    return tensors


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_ddp_saves_and_loads_as_one_and_one_process_loads_it_too(ranks, tmp_path):
    found = ranks("ddp")

    assert [rank["is_there_after_wait"] for rank in found] == [True, True]
    assert [rank["step"] for rank in found] == [6, 6]
    assert [rank["goes_on_the_same"] for rank in found] == [True, True]
    # One rank's own trouble stops the save on all of them, and each says whose it is.
    assert "extra.odd is a object" in found[1]["refused"]
    assert "Rank 1 cannot save: extra.odd" in found[0]["refused"]
    assert all("The ranks save different steps (4, 5)" in rank["apart"] for rank in found)
    # So do arguments that one rank alone refuses, and the other is not left waiting.
    assert found[1]["refused_full"].startswith("ConfigError: full = 'yes'")
    assert "Rank 1 cannot save: full = 'yes'" in found[0]["refused_full"]
    assert found[1]["refused_load"].startswith("ConfigError: model = 'OrderedDict'")
    assert "rank 1: model = 'OrderedDict'" in found[0]["refused_load"]
    assert names_in(tmp_path / "ddp") == ["step-00000002", "step-00000006"]

    manifest = json.loads((tmp_path / "ddp" / "step-00000002" / "manifest.json").read_text())
    assert not [name for name in manifest["tensors"] if "module." in name]
    assert manifest["metrics"] == {"loss": 1.0}
    model, optimizer = plain(5)
    state = CheckpointManager(tmp_path / "ddp").load_latest(model, optimizer)
    assert state["step"] == 6
    assert_same(state_of(model, optimizer), safetensors.torch.load_file(tmp_path / "ddp.safetensors"))


def test_fsdp2_to_plain_to_fsdp2_keeps_every_bit_and_ranks_fall_back_together(ranks, tmp_path):
    found = ranks("fsdp-save")

    # A disk that one rank cannot write to fails the save on both, and the next one works.
    assert "Rank 1 could not write its shard: File too large" in found[0]["failed"]
    assert "step 9 could not be written" in found[1]["failed"]
    assert found[0]["left"] == found[1]["left"] == ["step-00000001", "step-00000002", "step-00000003"]

    model, optimizer = plain(5)
    with CheckpointManager(tmp_path / "fsdp") as manager:
        state = manager.load_latest(model, optimizer)
    assert state["step"] == 3
    assert_same(state_of(model, optimizer), safetensors.torch.load_file(tmp_path / "fsdp.safetensors"))
    train(model, optimizer, 1)
    before = state_of(model, optimizer)
    with CheckpointManager(tmp_path / "plain") as manager:
        manager.save(model=model, optimizer=optimizer, step=4)
    train(model, optimizer, 1)

    damaged = tmp_path / "fsdp" / "step-00000003" / "rank-00001.safetensors"
    flip_last_bit(damaged)
    found = ranks("fsdp-load")

    assert [rank["step"] for rank in found] == [2, 2]
    assert found[0]["damaged"] == found[1]["damaged"]
    assert [item["file"] for item in found[0]["damaged"]] == [str(damaged)]
    assert len(names_in(tmp_path / "fsdp" / "quarantine")) == 1
    assert all("'0.weight' has the shape [9, 5], but [7, 5]" in rank["mismatch"] for rank in found)
    assert_same(safetensors.torch.load_file(tmp_path / "plain-loaded.safetensors"), before)
    trained = safetensors.torch.load_file(tmp_path / "plain-trained.safetensors")
    for name, tensor in state_of(model, optimizer).items():
        # BatchNorm takes away what a bias before it adds: its gradient is noise, which Adam blows up to a step.
        if name != "0.bias":
            torch.testing.assert_close(trained[name], tensor, msg=lambda difference, name=name: f"{name}: {difference}")


def test_a_checkpoint_of_two_ranks_loads_into_one_fsdp2_rank_and_back(ranks, tmp_path):
    ranks("fsdp-save")

    [found] = ranks("fsdp-load", world_size=1)
    assert found["step"] == 3

    with pytest.raises(CheckpointMismatchError, match=r"\[9, 5\], but \[7, 5\]"):
        CheckpointManager(tmp_path / "fsdp").load_latest(*plain(0, width=9))


def test_what_goes_wrong_on_one_rank_is_raised_on_all_and_the_next_save_works(ranks, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    other, odd = ranks("one-fails")

    assert [odd["save_fails"], odd["plan_fails"]] == ["KeyError: 'gone'"] * 2
    assert "Rank 1 cannot save: KeyError('gone')" in other["save_fails"]
    assert other["plan_fails"] == "CheckpointError: rank 1: KeyError('gone')"
    # An extra that refuses its state is told of by all ranks: none trains on alone.
    assert odd["apply_fails"].startswith("CheckpointMismatchError: 'odd' does not take the state")
    assert other["apply_fails"].startswith("CheckpointMismatchError: rank 1: 'odd' does not take the state")
    # One rank's message of a save is never taken for its answer to a load.
    for found in (other, odd):
        assert "different calls: rank 0 in save, rank 1 in load_latest" in found["apart"][0]
        assert "different calls: rank 0 in load_latest, its arguments, rank 1 in save" in found["apart"][1]
        assert "rank 0 lists this checkpoint, but rank 1 does not see it" in found["blind"]
        assert found["left"] == ["step-00000001", "step-00000004"]
        assert found["step"] == 4


def test_a_synchronous_save_that_fails_on_one_rank_is_raised_on_all_and_none_waits_for_another(ranks):
    other, odd = ranks("synchronous")

    for found in (other, odd):
        assert [bool(problem) for problem in found["problems"]] == [False, True, False]
        assert found["left"] == ["step-00000001", "step-00000003"]
        # The other rank may have met the end of rank 0's save itself, while it was writing.
        assert found["problems"][1].startswith("CheckpointWriteError: ")
        assert "checkpoint of step 2" in found["problems"][1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, which takes root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_for_any_rank_raises_on_none_and_saving_goes_on_when_there_is_room(
    ranks, small_disk, tmp_path
):
    found = ranks("full-disk")

    for rank in found:  # a rank that raises finds nothing
        assert rank["left"] == [[], [], ["step-00000003"], ["step-00000003"], ["step-00000005"]]
        assert rank["step"] == 5
    told = (tmp_path / "output-full-disk-0.txt").read_text()
    assert told.count("Saving is paused.") == 2
    assert "Saving is paused." not in (tmp_path / "output-full-disk-1.txt").read_text()


def test_a_process_group_that_is_made_anew_hears_nothing_of_the_one_before(ranks):
    found = ranks("new-groups")

    assert found[0]["left"] == found[1]["left"] == [f"step-{step:08d}" for step in range(1, 10)]


def test_a_script_that_ends_without_close_still_gets_its_last_checkpoint(tmp_path):
    script = (
        "import sys, torch; from production_ml.fault_tolerance import CheckpointManager;"
        "CheckpointManager(sys.argv[1]).save(model=torch.nn.Linear(500, 500), step=7)"
    )

    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, timeout=60)

    assert names_in(tmp_path) == ["step-00000007"]


def test_a_rank_whose_trainer_is_killed_amid_a_save_has_its_share_written_all_the_same(tmp_path, ranks):
    found = ranks("die-mid-save", exit_codes=[0, -signal.SIGKILL])

    assert found[0]["left"] == ["step-00000001"]
    model, optimizer = plain(5)
    assert CheckpointManager(tmp_path / "fsdp").load_latest(model, optimizer)["step"] == 1
