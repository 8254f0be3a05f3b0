"""Who this process is in the job, as its launcher tells through the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from production_ml.core.errors import ConfigError

RUN_DIR_VARIABLE = "PRODUCTION_ML_RUN_DIR"
ATTEMPT_VARIABLE = "PRODUCTION_ML_ATTEMPT"
OWNER_VARIABLE = "PRODUCTION_ML_OWNER_PID"
_TASKS_OF_STEP = "SLURM_STEP_NUM_TASKS"
_SRUN_VARIABLES = frozenset({"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", _TASKS_OF_STEP})


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedEnv:
    """A process's place in the job; a script started without a launcher is rank 0 of 1."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """The number of this job's processes on this node."""
    node_rank: int = 0
    attempt: int = 0
    """0 for the first start of the workers, then one more for each restart."""
    owner_pid: int
    """The process whose life is the run's life on this node: the launcher, or without one the script itself."""

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> DistributedEnv:
        """Read torchrun's variables, else SLURM's (`srun` without a launcher), else the defaults.

        Raises:
            ConfigError: A variable that should be a number is not one.
        """
        variables = _without_batch_script(os.environ if environ is None else environ)

        def number(*names: str, default: int = 0) -> int:
            for name in names:
                if name in variables:
                    return _parse(name, variables[name])
            return default

        launched = "TORCHELASTIC_RUN_ID" in variables
        return cls(
            rank=number("RANK", "SLURM_PROCID"),
            local_rank=number("LOCAL_RANK", "SLURM_LOCALID"),
            world_size=number("WORLD_SIZE", _TASKS_OF_STEP, default=1),
            local_world_size=number("LOCAL_WORLD_SIZE", default=1),
            node_rank=number("GROUP_RANK", "SLURM_NODEID"),
            attempt=number(ATTEMPT_VARIABLE, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"),
            owner_pid=number(OWNER_VARIABLE, default=os.getppid() if launched else os.getpid()),
        )


def _without_batch_script(environ: Mapping[str, str]) -> Mapping[str, str]:
    # A batch script is told that it is rank 0, and how many tasks srun may start; what it runs without srun is alone.
    if _TASKS_OF_STEP in environ:
        return environ
    return {name: value for name, value in environ.items() if name not in _SRUN_VARIABLES}


def _parse(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(name, text, "this environment variable must be a whole number") from None
