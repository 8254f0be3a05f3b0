"""How ranks agree: small JSON values exchanged over the process group, never a pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError


def rank_and_world_size() -> tuple[int, int]:
    """This process's place among the ranks that save and load together.

    Raises:
        ConfigError: A launcher started several ranks, but the process group is not there yet.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    env = DistributedEnv.read()
    if env.world_size > 1:
        raise ConfigError(
            "WORLD_SIZE",
            env.world_size,
            "several ranks were launched, but torch.distributed is not initialised",
            cure="Call torch.distributed.init_process_group() before saving or loading a checkpoint.",
        )
    return 0, 1


def gather_json(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    device = _device()
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor([mine.numel()], device=device))
    longest = int(max(size.item() for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: mine.numel()] = mine
    gathered = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return [
        json.loads(data[: int(size.item())].cpu().numpy().tobytes()) for data, size in zip(gathered, sizes, strict=True)
    ]


def _device() -> torch.device:
    """Where the default process group takes tensors: on the CPU if it can, else (NCCL alone) on this rank's GPU."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    return torch.device("cpu") if "cpu" in backends else torch.device("cuda", torch.cuda.current_device())
