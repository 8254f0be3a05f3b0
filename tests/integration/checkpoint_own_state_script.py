"""One rank in the tests of state that differs by rank: `checkpoint_own_state_script.py DIRECTORY SCENARIO`."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from production_ml.fault_tolerance import CheckpointManager, PerRank, RankStates

RANK = int(os.environ["RANK"])


class Loader:
    """A data loader, as far as checkpoints are concerned."""

    def __init__(self) -> None:
        self.seen = torch.zeros(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = state["seen"]


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def save(root: Path) -> dict[str, object]:
    torch.manual_seed(RANK)
    random.seed(RANK)
    np.random.seed(RANK)
    loader = Loader()
    loader.seen = torch.arange(RANK + 1)
    with CheckpointManager(root) as manager:
        manager.save(model=nn.Linear(2, 2), step=1, loader=PerRank(loader), place=PerRank(f"rank {RANK}"), epoch=RANK)
        return {"draws": draws()}


def load(root: Path) -> dict[str, object]:
    loader = Loader()
    state = CheckpointManager(root).load_latest(nn.Linear(2, 2), loader=PerRank(loader))
    states = state["loader"] if isinstance(state["loader"], RankStates) else []
    return {
        "draws": draws(),
        "loader": loader.seen.tolist(),
        "states": [item["seen"].tolist() for item in states],
        "place": state["place"],
        "epoch": state["epoch"],
    }


def main() -> None:
    root, scenario = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    found = {"save": save, "load": load}[scenario](root / "checkpoints")
    (root / f"found-{scenario}-{os.environ['WORLD_SIZE']}-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
