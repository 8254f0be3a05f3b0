"""Which of the ranks this process is: the process group's word, or alone without one."""

from __future__ import annotations

import torch.distributed as dist

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError


def rank_and_world_size() -> tuple[int, int]:
    """This process's place among the ranks that train, save and load together.

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
            cure="Call torch.distributed.init_process_group() before making a sampler, saving or loading a checkpoint.",
        )
    return 0, 1
