"""A process knows its place in the job, whoever launched it."""

from __future__ import annotations

import os

import pytest

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "GROUP_RANK": "2",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "3",
}


def test_a_script_started_by_hand_is_rank_0_of_1_and_owns_its_run():
    assert DistributedEnv.read({}) == DistributedEnv(owner_pid=os.getpid())


def test_torchrun_is_understood_and_its_agent_owns_the_run():
    assert DistributedEnv.read(TORCHRUN) == DistributedEnv(
        rank=5, local_rank=1, world_size=8, node_rank=2, attempt=3, owner_pid=os.getppid()
    )


def test_our_launcher_says_attempt_and_owner_itself():
    env = DistributedEnv.read({**TORCHRUN, "PRODUCTION_ML_ATTEMPT": "4", "PRODUCTION_ML_OWNER_PID": "77"})

    assert (env.attempt, env.owner_pid) == (4, 77)


def test_srun_is_understood_and_torchrun_goes_before_it():
    slurm = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODEID": "1"}

    assert DistributedEnv.read(slurm) == DistributedEnv(rank=1, world_size=4, node_rank=1, owner_pid=os.getpid())
    assert DistributedEnv.read({**slurm, **TORCHRUN}).rank == 5


def test_a_script_that_a_batch_script_runs_without_srun_is_alone_however_many_tasks_there_could_be():
    batch = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}

    assert DistributedEnv.read({**batch, "SLURM_RESTART_COUNT": "1"}) == DistributedEnv(
        attempt=1, owner_pid=os.getpid()
    )


def test_a_step_counts_by_its_own_tasks_and_not_by_the_allocations():
    step = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}

    env = DistributedEnv.read(step)

    assert (env.rank, env.local_rank, env.world_size) == (1, 1, 2)


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="WORLD_SIZE = 'two'"):
        DistributedEnv.read({"WORLD_SIZE": "two"})
