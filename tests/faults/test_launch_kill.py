"""SIGKILL from outside, at a random moment of training on gloo: the first restart recovers, every time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.monitoring.run_log import RunLog

KILLS = 5
STEPS = 40
LONG = 120.0
TRAINING = f"""
import os, time
import torch
import torch.distributed as dist

attempt = os.environ["PRODUCTION_ML_ATTEMPT"]
dist.init_process_group("gloo")
for step in range({STEPS}):
    total = torch.ones(1)
    dist.all_reduce(total)
    if total.item() != dist.get_world_size():
        raise SystemExit(f"step {{step}}: the sum is {{total.item()}}")
    print(f"attempt {{attempt}} rank {{dist.get_rank()}} step {{step}}")
    time.sleep(0.005)
dist.destroy_process_group()
"""


def worker_pid(run_dir: Path, rank: int) -> int:
    started = [event for source, event in RunLog.open(run_dir).events("attempt_started") if source.role == "launcher"]
    return int(started[0].fields["worker_pids"][str(rank)])


@pytest.mark.parametrize("_kill", range(KILLS))
def test_the_first_restart_after_a_kill_recovers(tmp_path, rng, _kill):
    victim, kill_at = rng.randrange(2), rng.randrange(STEPS - 10)
    print(f"rank {victim} is killed at step {kill_at}")
    (tmp_path / "train.py").write_text(TRAINING)
    # The run is named beforehand, so that its log can be opened while the job runs.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"project": "train", "experiment": "kill", "run_id": "run"}')
    flags = ["--nproc-per-node=2", "--max-restarts=1", "--run-dir=run"]
    command = [sys.executable, "-m", "production_ml.cli.main", "launch", *flags, "train.py"]

    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        for line in job.stdout:
            if line == f"attempt 0 rank {victim} step {kill_at}\n":
                os.kill(worker_pid(tmp_path / "run", victim), signal.SIGKILL)
                break
        printed, complaints = job.communicate(timeout=LONG)

    assert job.returncode == 0, complaints
    for rank in range(2):
        assert f"attempt 1 rank {rank} step {STEPS - 1}\n" in printed
    failed = [event.fields for _, event in RunLog.open(tmp_path / "run").events("worker_failed")]
    assert (failed[0]["rank"], failed[0]["signal"]) == (victim, "SIGKILL")
