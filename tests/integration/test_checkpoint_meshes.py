"""A checkpoint of any mesh loads into any other, every parameter and every moment bit by bit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from production_ml.fault_tolerance import CheckpointManager

SCRIPT = Path(__file__).with_name("checkpoint_mesh_script.py")
_spec = importlib.util.spec_from_file_location("checkpoint_mesh_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ranks(tmp_path):
    """Load and save on several ranks, one pair `source:layout` after another."""

    def run(world_size: int, *pairs: str) -> None:
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(world_size):
                environment = {**os.environ, **meeting_point, "OMP_NUM_THREADS": "1", "RANK": str(rank)}
                output = stack.enter_context(open(tmp_path / f"output-{world_size}-{rank}.txt", "a"))
                process = subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(tmp_path), *pairs],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                processes.append(stack.enter_context(process))
                stack.callback(process.kill)
            exit_codes = [process.wait(timeout=200) for process in processes]
        outputs = [path.read_text() for path in sorted(tmp_path.glob(f"output-{world_size}-*.txt"))]
        assert exit_codes == [0] * world_size, "\n".join(outputs)

    return run


def loaded_into_one_process(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = script.build(9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    CheckpointManager(checkpoint).load_latest(model, optimizer)
    return script.state_of(model, optimizer)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{what}: {name}"


def test_every_bit_survives_from_one_process_over_two_and_four_ranks_and_back(ranks, tmp_path):
    model = script.build(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        script.train_step(model, optimizer)
    with CheckpointManager(tmp_path / "plain") as manager:
        manager.save(model=model, optimizer=optimizer, step=2)
    safetensors.torch.save_file(script.state_of(model, optimizer), tmp_path / "plain.safetensors")
    two = ["plain:tp2", "plain:fsdp2", "fsdp2:ddp2"]
    four = ["tp2:tp4", "plain:fsdp-tp4", "fsdp2:hsdp4", "hsdp4:fsdp4", "fsdp-tp4:ddp4"]
    last = ["tp4:fsdp2b", "fsdp-tp4:tp2b", "hsdp4:tp2c"]

    ranks(2, *two)
    ranks(4, *four)
    ranks(2, *last)

    for pair in two + four + last:
        source, layout = pair.split(":")
        saved = safetensors.torch.load_file(tmp_path / f"{source}.safetensors")
        found = safetensors.torch.load_file(tmp_path / f"{source}-to-{layout}.safetensors")
        assert_same(found, saved, f"{source} to {layout}")
        trained = safetensors.torch.load_file(tmp_path / f"{layout}.safetensors")
        assert not torch.equal(trained["up.weight"], saved["up.weight"])
        assert_same(loaded_into_one_process(tmp_path / layout), trained, f"{layout} to plain")
