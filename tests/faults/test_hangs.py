"""Hangs that are caused, each in a random rank and step: found, named, ended; and long pauses that are none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from production_ml.monitoring.run_log import RunLog

SCRIPT = str(Path(__file__).with_name("hang_script.py"))
LAUNCH = [sys.executable, "-m", "production_ml.cli.main", "launch", "--nproc-per-node=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
FINISHED_IN = "rank {} finished in attempt {}\n"
LONG = 120.0
NAMED = {
    "stop": "is stopped (SIGSTOP)",
    "loop": "in loop_for_ever",
    "skip": "in wait_for_what_never_comes",
    "data-worker": "in sleep_for_ever_in_the_dataset",
    "gil": "in hold_the_gil_for_ever",
}
# The others, and the whole of what is no hang, take minutes: `make hangs`.
IS_FULL = os.environ.get("PRODUCTION_ML_HANGS") == "all"
HANGS = list(NAMED) if IS_FULL else ["stop", "skip"]
LONG_KINDS = ["said-pause", "evaluation-of-all", "evaluation-of-one", "slow-save-of-one", "slow-start"]
PAUSES = LONG_KINDS if IS_FULL else ["said-pause", "evaluation-of-one"]
UNDER_TORCHRUN = ["loop", "gil", "data-worker"] if IS_FULL else ["loop"]
WITHOUT_PULSE = """
import time
for step in range(5):
    time.sleep(0.01)
time.sleep(3)
print("finished")
"""


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRODUCTION_ML_RUN")}
    return subprocess.run(
        command, cwd=cwd, env={**environment, **variables}, capture_output=True, text=True, timeout=LONG
    )


def events(run_dir: Path, name: str) -> list[dict]:
    return [dict(event.fields) for source, event in RunLog.open(run_dir).events(name) if source.role == "launcher"]


@pytest.mark.parametrize("kind", HANGS)
def test_a_hang_is_named_and_ended_within_five_step_times(tmp_path, rng, kind):
    victim, step = rng.randrange(2), rng.randrange(4, 6)
    flags = ["--hang-timeout=auto:0.5", "--max-restarts=1", "--run-dir=run"]

    done = run([*LAUNCH, *flags, SCRIPT, kind, str(step), str(victim)], tmp_path, STEP_SECONDS="1.0")

    assert done.returncode == 0, done.stderr
    [found] = events(tmp_path / "run", "hang_found")
    assert found["ranks"] == [victim]
    assert NAMED[kind] in found["doing"][0]
    assert found["silent_seconds"] < 5 * found["step_seconds"]
    assert f"rank {victim} {found['doing'][0]}" in done.stderr
    stacks = (tmp_path / "run/logs/attempt-000" / f"rank-{1 - victim:05d}.stacks.txt").read_text()
    assert "hang_script.py" in stacks
    [failed] = [failure for failure in events(tmp_path / "run", "worker_failed") if failure["rank"] == victim]
    assert failed["reason"].startswith("hung for ")
    for rank in range(2):
        assert FINISHED_IN.format(rank, 1) in done.stdout


def test_over_two_nodes_the_one_with_the_culprit_ends_it(tmp_path, rng):
    victim = rng.randrange(2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meet = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=job"]
    command = [*LAUNCH[:-1], *meet, "--local-addr=127.0.0.1", "--hang-timeout=1.5", "--run-dir=run"]

    with ThreadPoolExecutor() as nodes:
        jobs = [nodes.submit(run, [*command, SCRIPT, "stop", "6", str(victim)], tmp_path) for _ in range(2)]

    assert [job.result().returncode for job in jobs] == [0, 0], jobs[0].result().stderr
    found = events(tmp_path / "run", "hang_found")
    assert [hang["ranks"] for hang in found] == [[victim], [victim]]
    reasons = [failure["reason"] for failure in events(tmp_path / "run", "worker_failed") if failure["rank"] == victim]
    assert [reason.startswith("hung for ") for reason in reasons] == [True]


@pytest.mark.parametrize("kind", PAUSES)
def test_what_takes_long_is_no_hang(tmp_path, rng, kind):
    victim, step = rng.randrange(2), rng.randrange(6, 9)
    flags = ["--hang-timeout=auto:1", "--max-restarts=0", "--run-dir=run"]

    done = run([*LAUNCH, *flags, SCRIPT, kind, str(step), str(victim)], tmp_path, STEP_SECONDS="0.25")

    assert done.returncode == 0, done.stderr
    assert events(tmp_path / "run", "hang_found") == []
    is_looked_into = kind not in ("said-pause", "slow-start")
    assert bool(events(tmp_path / "run", "timeout_raised")) is is_looked_into
    for rank in range(2):
        assert FINISHED_IN.format(rank, 0) in done.stdout


def test_a_script_without_a_pulse_is_left_alone(tmp_path):
    (tmp_path / "train.py").write_text(WITHOUT_PULSE)

    done = run([*LAUNCH, "--hang-timeout=0.2", "--max-restarts=0", "--run-dir=run", "train.py"], tmp_path)

    assert (done.returncode, done.stdout) == (0, "finished\nfinished\n"), done.stderr
    assert events(tmp_path / "run", "hang_suspected") == []


@pytest.mark.parametrize("kind", UNDER_TORCHRUN)
def test_under_torchrun_a_worker_that_hangs_ends_itself_and_is_started_again(tmp_path, rng, kind):
    victim, step = rng.randrange(2), rng.randrange(6, 9)
    # torchrun's own restart is broken on gloo without this.
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "STEP_SECONDS": "0.25"}

    done = run([*TORCHRUN, SCRIPT, kind, str(step), str(victim)], tmp_path, **variables)

    assert done.returncode == 0, done.stderr
    assert {"loop": "in loop_for_ever", "gil": "in hold_the_gil_for_ever", "data-worker": "in main"}[
        kind
    ] in done.stderr
    for rank in range(2):
        assert FINISHED_IN.format(rank, 1) in done.stdout
