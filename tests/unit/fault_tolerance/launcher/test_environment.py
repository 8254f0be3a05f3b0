"""A worker finds torchrun's variables and our own in its environment, and keeps what the user has set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from production_ml.core.distributed_env import DistributedEnv
from production_ml.fault_tolerance.launcher.environment import AttemptFacts, WorkerPlace, worker_environment

PLACE = WorkerPlace(
    rank=5,
    local_rank=1,
    world_size=8,
    local_world_size=4,
    group_rank=1,
    group_world_size=2,
    role="default",
    role_rank=5,
    role_world_size=8,
)
FACTS = AttemptFacts(
    attempt=3,
    restart_count=1,
    max_restarts=3,
    run_id="job-7",
    run_dir=Path("/runs/job-7"),
    launcher_pid=4242,
    store_host="127.0.0.1",
    store_port=29400,
)


def environment(place: WorkerPlace = PLACE, **environ: str) -> dict[str, str]:
    return worker_environment(place, FACTS, error_file=Path("/runs/error.json"), environ=environ)


def test_the_library_reads_back_who_the_worker_is():
    env = DistributedEnv.read({**environment(), "LOCAL_RANK": "1"})

    assert env == DistributedEnv(
        rank=5, local_rank=1, world_size=8, local_world_size=4, node_rank=1, attempt=3, owner_pid=4242
    )


def test_torch_is_pointed_to_the_store_of_this_attempt():
    given = environment()

    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("127.0.0.1", "29400")
    assert given["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def test_a_variable_of_an_outer_launcher_does_not_reach_the_worker():
    assert environment(RANK="0", PRODUCTION_ML_ATTEMPT="9", PATH="/bin")["RANK"] == "5"
    assert environment(RANK="0", PRODUCTION_ML_ATTEMPT="9", PATH="/bin")["PRODUCTION_ML_ATTEMPT"] == "3"
    assert environment(PATH="/bin")["PATH"] == "/bin"


def test_several_workers_get_one_thread_each_unless_the_user_said_otherwise():
    alone = replace(PLACE, local_world_size=1)

    assert environment()["OMP_NUM_THREADS"] == "1"
    assert environment(OMP_NUM_THREADS="6")["OMP_NUM_THREADS"] == "6"
    assert "OMP_NUM_THREADS" not in environment(alone)
