"""What two ranks do in the tests of loads and copies in memory that one of them spoils: `main(directory, case)`."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.loading.newest_good import search


class OddDirectory(CheckpointDirectory):
    """A place whose faults are no OSError, like those of an object store's client."""

    def misnamed(self):
        raise RuntimeError("the client's own fault")


class Said(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def preload() -> None:
    """What the first optimizer would import on each rank."""
    importlib.import_module("torch._dynamo")


def fault_on_rank_0(root: Path) -> None:
    def plan(manifest):
        raise AssertionError("there is nothing to load")

    expected = RuntimeError if dist.get_rank() == 0 else CheckpointError
    with pytest.raises(expected, match="the client's own fault"):
        search(OddDirectory(root / "checkpoints"), plan, rank=dist.get_rank(), world_size=2)


def nodes_that_cannot_reach_each_other(root: Path) -> None:
    os.environ["GROUP_RANK"] = os.environ["RANK"]  # two nodes, and no launcher that says how many there are
    os.environ["XDG_RUNTIME_DIR"] = str(root)
    said = Said()
    logging.getLogger("production_ml").addHandler(said)
    model = nn.Linear(2, 2)
    with CheckpointManager(root / "checkpoints", memory_copies=1) as manager:
        for step in range(1, 6):
            manager.save_to_memory(model=model, step=step)
    told = [line for line in said.lines if "are not sent to other nodes: the keepers of the ranks 0, 1" in line]
    assert len(told) == (1 if dist.get_rank() == 0 else 0), said.lines


def main(root: Path, case: str) -> None:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    {"fault": fault_on_rank_0, "nodes": nodes_that_cannot_reach_each_other}[case](root)
    dist.barrier()
    dist.destroy_process_group()
