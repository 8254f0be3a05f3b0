"""What the ranks decide together at each step, in one reduction of a few numbers, whoever has something to say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist


def sum_over_ranks(values: Mapping[str, float | torch.Tensor], device: torch.device | None = None) -> dict[str, float]:
    """Each value summed over all ranks, the same numbers on every rank.

    All ranks have to call it, with the same names. Parts of a training loop that need an answer at each step (has a
    gradient overflowed, was a notice of preemption received, is the time up) put theirs into one call: a step then
    waits for its peers once. A NaN of one rank is a NaN for all; tell of it in a flag of 0 and 1.

    Args:
        values: By name; a tensor has one element, and is brought to `device` without waiting for it.
        device: Where the process group reduces; by default the GPU under NCCL, and else the CPU.

    Returns:
        The sums by name, as float64 gave them.
    """
    names = sorted(values)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return {name: float(values[name]) for name in names}
    where = device or _reducing_device()
    packed = torch.zeros(len(names), dtype=torch.float64, device=where)
    for index, name in enumerate(names):
        packed[index] = values[name]
    dist.all_reduce(packed)
    return dict(zip(names, packed.tolist(), strict=True))


def _reducing_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
