"""Pulses and a watch for each attempt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles
from production_ml.fault_tolerance.launcher.hang import HangWatches
from production_ml.fault_tolerance.launcher.rendezvous import Meeting
from production_ml.fault_tolerance.pulse import PULSE_VARIABLE
from production_ml.fault_tolerance.recovery.hang.limits import HangLimits

STEP_AND_SLEEP = """
import time
import torch
import production_ml.fault_tolerance
weight = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
time.sleep(1000)
"""
MEETING = Meeting(attempt=3, group_rank=0, group_world_size=1, store_host="127.0.0.1", store_port=1)


def say_nothing(_event: str, _line: str, **_facts: object) -> None:
    """A journal that keeps nothing."""


def test_without_a_limit_there_are_no_pulses(tmp_path):
    watches = HangWatches(None, tmp_path, say_nothing)

    assert watches.environment(0, 0) == {}
    watches.close()


def test_pulses_are_in_memory_and_go_with_the_launch(tmp_path):
    watches = HangWatches(HangLimits(), tmp_path, say_nothing)
    pulses = [Path(watches.environment(attempt, 0)[PULSE_VARIABLE]) for attempt in range(2)]

    assert all(pulse.exists() for pulse in pulses)
    assert pulses[0] != pulses[1]

    watches.close()
    assert not any(pulse.exists() for pulse in pulses)


def test_a_worker_that_hangs_is_told_of_and_killed(tmp_path):
    told: list[tuple[str, list[int]]] = []
    is_over = threading.Event()

    def tell(event: str, _line: str, *, ranks: list[int], **_facts: object) -> None:
        told.append((event, ranks))
        if event == "hang_found":
            is_over.set()

    files = AttemptFiles(tmp_path, 3)
    files.directory.mkdir()
    watches = HangWatches(HangLimits(fixed_seconds=0.5), tmp_path, tell)
    variables = {**watches.environment(3, 0), "PRODUCTION_ML_OWNER_PID": str(os.getpid())}

    with subprocess.Popen([sys.executable, "-c", STEP_AND_SLEEP], env={**os.environ, **variables}) as worker:
        watches.begin(MEETING, {0: 4}, {0: worker.pid}, None)
        assert is_over.wait(60)
        exit_code = worker.wait()
    watches.close()

    assert exit_code == -signal.SIGKILL
    assert told == [("hang_suspected", [4]), ("hang_found", [4])]
    assert files.error(4).read_text().startswith('{"message": "hung for ')
    assert "rank 4 is at <string>:9" in files.stacks(4).read_text()


def test_a_watch_that_has_ended_kills_nobody(tmp_path):
    watches = HangWatches(HangLimits(fixed_seconds=0.01), tmp_path, say_nothing)
    watches.environment(3, 0)
    with subprocess.Popen(["sleep", "100"]) as worker:
        watches.begin(MEETING, {0: 0}, {0: worker.pid}, None)
        watches.end()

        assert worker.poll() is None
        worker.kill()
    watches.close()
