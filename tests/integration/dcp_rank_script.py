"""What one rank does in the tests of DCP's API over several ranks: `dcp_rank_script.py SCENARIO DIRECTORY`.

Each scenario is a user's script that knows only `dcp.save` and `dcp.load`. What it finds out goes to `found-RANK.json`,
what it computed to safetensors files, and the test compares.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance.interchange.dcp_storage import (
    VerifiedStorageReader,
    VerifiedStorageWriter,
    own_errors,
)

RANK = int(os.environ["RANK"])


def sharded(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """FSDP2; sizes that two ranks cannot halve."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer.zero_grad()
    model(torch.randn(4, 5, generator=generator)).square().mean().backward()
    optimizer.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer), "epoch": 3}


def write_whole(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """All tensors, gathered, for the test to compare bit by bit."""
    tensors = {name: whole(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"optimizer.{key}.{name}": whole(value) for key, value in optimizer.state[parameter].items()}
    if RANK == 0:
        safetensors.torch.save_file(tensors, path)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def save(root: Path) -> dict[str, object]:
    """Step 1 by `save`, step 2 by `async_save`, during which training goes on, step 3 with plans that are cached."""
    model, optimizer = sharded(0)
    train(model, optimizer)
    writer = VerifiedStorageWriter(root / "dcp", 1, metrics={"loss": 0.5})
    dcp.save(state_of(model, optimizer), storage_writer=writer)

    train(model, optimizer)
    write_whole(root / "step-2.safetensors", model, optimizer)
    # DCP's background thread talks between ranks: over a group of its own, or it meets the training's messages.
    apart = dist.new_group(backend="gloo")
    writer = VerifiedStorageWriter(root / "dcp", 2)
    saving = dcp.async_save(state_of(model, optimizer), storage_writer=writer, process_group=apart)
    train(model, optimizer)
    saving.result()

    for step in (3, 4):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        writer = VerifiedStorageWriter(root / "dcp", step)
        dcp.save(state_of(model, optimizer), storage_writer=writer, planner=planner)
    write_whole(root / "step-4.safetensors", model, optimizer)
    return {}


def load(root: Path) -> dict[str, object]:
    """What was saved comes back into FSDP2, whoever saved it; `source` tells where it is."""
    model, optimizer = sharded(9)
    state = {**state_of(model, optimizer), "epoch": 0}
    dcp.load(state, storage_reader=VerifiedStorageReader(root / "source"))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    write_whole(root / "loaded.safetensors", model, optimizer)
    return {"epoch": state["epoch"]}


def load_damaged(root: Path) -> dict[str, object]:
    model, optimizer = sharded(9)
    with own_errors():
        dcp.load(state_of(model, optimizer), storage_reader=VerifiedStorageReader(root / "dcp"))
    return {}


def refuse(root: Path) -> dict[str, object]:
    """Rank 1 alone has something that cannot be kept."""
    odd = {"odd": slice(3)} if RANK == 1 else {}
    with own_errors():
        dcp.save({"w": torch.ones(2), **odd}, storage_writer=VerifiedStorageWriter(root / "dcp", 1))
    return {}


def main() -> None:
    scenario, root = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    try:
        found = {"save": save, "load": load, "load-damaged": load_damaged, "refuse": refuse}[scenario](root)
    except CheckpointError as error:
        found = {"kind": type(error).__name__, "error": str(error)}
    (root / f"found-{scenario}-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
