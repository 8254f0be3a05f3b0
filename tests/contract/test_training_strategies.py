"""What every training strategy promises to a loop: the same step, however the model is spread and the batch is cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from production_ml.training.strategies import STRATEGIES

SCRIPT = Path(__file__).with_name("training_strategy_script.py")
KINDS = ["ddp", "deepspeed", "fsdp", "plain"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(kind: str, pieces: int, output: Path) -> dict[str, torch.Tensor]:
    world_size = 1 if kind == "plain" else 2
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    command = [sys.executable, str(SCRIPT), kind, str(pieces), str(output)]
    ranks = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    printed = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(printed)
    return safetensors.torch.load_file(output)


def test_every_kind_is_under_contract():
    assert STRATEGIES.names() == KINDS


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, torch.Tensor]:
    return train("plain", 1, tmp_path_factory.mktemp("reference") / "weights.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_and_three_pieces_learn_what_one_rank_learns(kind, reference, tmp_path):
    weights = train(kind, 3, tmp_path / "weights.safetensors")

    assert weights.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6, msg=name)
