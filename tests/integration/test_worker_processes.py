"""Real processes: their ends are seen at once, their groups end with them, and they end with the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from production_ml.fault_tolerance.launcher.guardian import Guardian
from production_ml.fault_tolerance.launcher.output import OutputRelay
from production_ml.fault_tolerance.launcher.worker_processes import WorkerCommand, WorkerProcesses
from production_ml.monitoring.run_directory import process_start

LONG = 60.0


@pytest.fixture
def start(tmp_path):
    started: list[WorkerProcesses] = []

    def start(*scripts: str) -> WorkerProcesses:
        commands = [
            WorkerCommand(
                local_rank=rank,
                arguments=("sh", "-c", script),
                environment=os.environ,
                stdout=tmp_path / f"{rank}.out",
                stderr=tmp_path / f"{rank}.err",
            )
            for rank, script in enumerate(scripts)
        ]
        started.append(WorkerProcesses(commands, OutputRelay(lambda _rank, _stream: False)))
        return started[-1]

    yield start
    for workers in started:
        workers.stop(signal.SIGKILL, grace_seconds=0)


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {LONG} s")
        time.sleep(0.01)


def written_pid(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"), f"a pid in {path}")
    return int(path.read_text())


def test_the_wait_ends_with_the_first_worker_and_tells_how_it_ended(start):
    workers = start("kill -9 $$", "exec sleep 600")

    workers.wait_for_exit(LONG)

    assert workers.exit_codes() == {0: -9}


def test_the_wait_ends_when_its_time_is_over(start):
    workers = start("exec sleep 600")

    workers.wait_for_exit(0.01)

    assert workers.exit_codes() == {}


def test_a_command_that_cannot_be_run_is_127_and_says_so(tmp_path):
    output = OutputRelay(lambda _rank, _stream: False)
    missing = WorkerCommand(
        local_rank=0,
        arguments=("no-such-program",),
        environment=os.environ,
        stdout=tmp_path / "out",
        stderr=tmp_path / "err",
    )
    workers = WorkerProcesses([missing], output)

    workers.wait_for_exit(LONG)

    assert workers.exit_codes() == {0: 127}
    assert output.stderr_tail(0) == ["no-such-program: cannot be run (No such file or directory)"]
    workers.stop(signal.SIGTERM, grace_seconds=0)


def test_what_a_killed_worker_had_started_is_killed_too(start, tmp_path):
    workers = start(f"sleep 600 & echo $! > {tmp_path / 'child'}; wait")
    child = written_pid(tmp_path / "child")

    os.kill(workers.pids[0], signal.SIGKILL)
    workers.wait_for_exit(LONG)
    assert workers.exit_codes() == {0: -9}

    wait_for(lambda: process_start(child) == 0, "the end of the child")


def test_stopping_gives_time_to_end_and_kills_who_does_not(start, tmp_path):
    polite = f"trap 'echo bye; exit 3' TERM; touch {tmp_path / 'polite'}; while :; do sleep 0.02; done"
    stubborn = f"trap '' TERM; touch {tmp_path / 'stubborn'}; while :; do sleep 0.02; done"
    workers = start(polite, stubborn)
    wait_for(lambda: (tmp_path / "polite").exists() and (tmp_path / "stubborn").exists(), "the start of both")

    workers.stop(signal.SIGTERM, grace_seconds=0.5)

    assert workers.exit_codes() == {0: 3, 1: -9}
    assert (tmp_path / "0.out").read_text() == "bye\n"


def test_a_hurried_stop_does_not_wait(start, tmp_path):
    workers = start(f"trap '' TERM; touch {tmp_path / 'up'}; while :; do sleep 0.02; done")
    wait_for(lambda: (tmp_path / "up").exists(), "the start")
    began = time.monotonic()

    workers.stop(signal.SIGTERM, grace_seconds=10 * LONG, is_hurried=lambda: True)

    assert workers.exit_codes() == {0: -9}
    assert time.monotonic() - began < LONG


def test_the_guardian_kills_the_groups_that_the_launcher_left(tmp_path):
    guardian_module = "production_ml.fault_tolerance.launcher.guardian"
    launcher = (
        f"from {guardian_module} import Guardian; import time; guardian = Guardian(); "
        "guardian.guard([GROUP]); print('guarded', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as group:
        with subprocess.Popen(
            [sys.executable, "-c", launcher.replace("GROUP", str(group.pid))], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"guarded\n"
            process.kill()

        assert group.wait(LONG) == -signal.SIGKILL


def test_a_guardian_that_was_dismissed_kills_nobody():
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as group:
        guardian = Guardian()
        guardian.guard([group.pid])

        guardian.close()

        assert group.poll() is None
        group.kill()
