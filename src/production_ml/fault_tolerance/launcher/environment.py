"""What the launcher tells its workers through the environment: torchrun's variables, and our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from production_ml.core.distributed_env import ATTEMPT_VARIABLE, OWNER_VARIABLE, RUN_DIR_VARIABLE

THREADS_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlace:
    """Where one worker stands among all of the job; names and meanings are torchrun's."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    group_rank: int
    group_world_size: int
    role: str
    role_rank: int
    role_world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFacts:
    """What holds for all workers of one attempt on this node."""

    attempt: int
    """Counts every start of the workers, over all launches into the same run directory."""
    restart_count: int
    """Counts failures since this launcher began, as torchelastic does."""
    max_restarts: int
    run_id: str
    run_dir: Path
    launcher_pid: int
    store_host: str
    store_port: int


def worker_environment(
    place: WorkerPlace, facts: AttemptFacts, *, error_file: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of a worker, but for its LOCAL_RANK and devices, which torchelastic sets."""
    return {
        # Several workers with a thread per core each would fight for the cores.
        **({THREADS_VARIABLE: "1"} if place.local_world_size > 1 else {}),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        **environ,
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(place.group_rank),
        "GROUP_WORLD_SIZE": str(place.group_world_size),
        "ROLE_NAME": place.role,
        "ROLE_RANK": str(place.role_rank),
        "ROLE_WORLD_SIZE": str(place.role_world_size),
        "MASTER_ADDR": facts.store_host,
        "MASTER_PORT": str(facts.store_port),
        "TORCHELASTIC_RUN_ID": facts.run_id,
        "TORCHELASTIC_RESTART_COUNT": str(facts.restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(facts.max_restarts),
        # The launcher hosts a new store for each attempt, so all workers are its clients; docs/decisions says why.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        RUN_DIR_VARIABLE: str(facts.run_dir),
        ATTEMPT_VARIABLE: str(facts.attempt),
        OWNER_VARIABLE: str(facts.launcher_pid),
    }
