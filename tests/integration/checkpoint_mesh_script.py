"""What one rank does in the tests of meshes: `main(directory, "SOURCE:LAYOUT", …)`.

For each pair it loads the checkpoint SOURCE into a model that is laid out over the ranks as LAYOUT says, and writes
what it finds, gathered, to `SOURCE-to-LAYOUT.safetensors`. Then it trains one step, writes the state again as
`LAYOUT.safetensors`, and saves it as the checkpoint LAYOUT. The test compares bit by bit.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from production_ml.fault_tolerance import CheckpointManager

State = dict[str, torch.Tensor]
FEATURES, HIDDEN, ODD = 6, 8, 9


class Block(nn.Module):
    """Layers that tensor parallelism cuts by rows and by columns, some into pieces of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.up = nn.Linear(FEATURES, HIDDEN)
        self.down = nn.Linear(HIDDEN, FEATURES)
        self.odd = nn.Linear(FEATURES, ODD)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.odd(self.down(self.up(self.norm(x)).relu()))


def tensor_parallel(model: Block, mesh: DeviceMesh) -> None:
    plan = {
        "norm": SequenceParallel(use_local_output=False),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
        "odd": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)


def lay_out(model: Block, layout: str) -> nn.Module:
    """`fsdp`, `tp`, `ddp`, `hsdp` or `fsdp-tp`; with two dimensions each has half of the ranks."""
    world_size = dist.get_world_size()
    if layout.startswith("ddp"):
        return DistributedDataParallel(model)
    if layout.startswith("fsdp-tp"):
        mesh = init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("data", "tensor"))
        tensor_parallel(model, mesh["tensor"])
        fully_shard(model, mesh=mesh["data"])
    elif layout.startswith("hsdp"):
        fully_shard(model, mesh=init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("copy", "shard")))
    elif layout.startswith("tp"):
        tensor_parallel(model, init_device_mesh("cpu", (world_size,)))
    else:
        for layer in (model.up, model.odd):
            fully_shard(layer)
        fully_shard(model)
    return model


def build(seed: int) -> Block:
    torch.manual_seed(seed)
    return Block()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 4, FEATURES, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """All of a training's tensors, gathered, by names that no wrapper changes."""
    tensors = {name.removeprefix("module."): whole(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name.removeprefix('module.')}"] = whole(value)
    return tensors


def write(path: Path, state: State) -> None:
    if dist.get_rank() == 0:
        safetensors.torch.save_file(state, path)


def preload() -> None:
    """What the first optimizer would import on each rank."""
    importlib.import_module("torch._dynamo")


def main(root: Path, *pairs: str) -> None:
    dist.init_process_group("gloo")
    for seed, pair in enumerate(pairs):
        source, layout = pair.split(":")
        model = lay_out(build(100 + seed), layout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        CheckpointManager(root / source).load_latest(model, optimizer)
        write(root / f"{source}-to-{layout}.safetensors", state_of(model, optimizer))
        train_step(model, optimizer)
        write(root / f"{layout}.safetensors", state_of(model, optimizer))
        with CheckpointManager(root / layout) as manager:
            manager.save(model=model, optimizer=optimizer, step=1)
    dist.destroy_process_group()
