"""SIGKILL at any moment loses no step whose log() returned."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.monitoring import RunLog

KILLS = 30

# Logs in a tight loop, and after each log() puts the step where a SIGKILL cannot take it back.
TRAINER = """
import os, struct, sys
from production_ml.monitoring import TrainingMonitor
monitor = TrainingMonitor("shop", "exp-001", None, run_dir=sys.argv[1])
returned = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
for step in range(10**9):
    monitor.log({"train/loss": 1.0 / (step + 1), "train/lr": 0.1, "system/step": float(step)}, step=step)
    os.pwrite(returned, struct.pack("<q", step), 0)
    if step == 0:
        print("training", flush=True)
"""


@pytest.mark.parametrize("number", range(KILLS))
def test_every_step_whose_log_returned_is_in_the_log(number: int, tmp_path: Path, rng) -> None:
    returned = tmp_path / "returned"
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "run"), str(returned)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"training\n"
        select.select([], [], [], rng.uniform(0.001, 0.08))  # the moment is the fault: nothing is waited for
        trainer.kill()
    (last,) = struct.unpack("<q", returned.read_bytes())

    log = RunLog.open(tmp_path / "run")

    steps = [record.step for _, record in log.metrics()]
    print(f"killed after log() had returned for step {last}; the log has {len(steps)} steps")
    assert steps[: last + 1] == list(range(last + 1))
    assert len(steps) <= last + 2  # the step whose log() was about to return
    assert all(record.values["system/step"] == record.step for _, record in log.metrics())
    assert log.damages == []


def test_a_restarted_run_goes_on_behind_the_torn_log(tmp_path: Path) -> None:
    for attempt in range(3):
        command = [sys.executable, "-c", TRAINER, str(tmp_path / "run"), str(tmp_path / "returned")]
        environment = {**os.environ, "PRODUCTION_ML_ATTEMPT": str(attempt)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"training\n"
            trainer.kill()

    log = RunLog.open(tmp_path / "run")

    assert {source.attempt for source, _ in log.metrics()} == {0, 1, 2}
    assert [event.name for _, event in log.events()].count("run_restarted") == 2
