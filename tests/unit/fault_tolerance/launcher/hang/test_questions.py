"""Asking real processes where they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from production_ml.fault_tolerance.launcher.hang.questions import (
    WatchedWorker,
    ask_for_flight_recorders,
    ask_for_stacks,
    data_worker_findings,
    judge,
    kill,
    last_collective,
)
from production_ml.fault_tolerance.pulse import Pulse
from production_ml.fault_tolerance.recovery.hang.answering import AnswerFiles
from production_ml.fault_tolerance.recovery.hang.processes import look_at
from production_ml.fault_tolerance.recovery.hang.stacks import Activity

ANSWERING = """
import ctypes, os, time
import production_ml.fault_tolerance

def loop():
    print("ready", flush=True)
    while True: pass

def wait():
    print("ready", flush=True)
    time.sleep(1000)

def hold_the_gil():
    library = ctypes.PyDLL(None)
    lock = ctypes.create_string_buffer(128)
    print("ready", flush=True)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)

def start_data_worker():
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"pt_data_worker", 0, 0, 0)
        hang_in_the_dataset()
    time.sleep(1000)

def hang_in_the_dataset():
    print("ready", flush=True)
    time.sleep(1000)
"""
Start = Callable[..., WatchedWorker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(call: str, script: str = ANSWERING) -> WatchedWorker:
        path = tmp_path / "0.pulse"
        Pulse(path).close()
        (tmp_path / "worker.py").write_text(f"{script}\n{call}\n")
        variables = {"PRODUCTION_ML_PULSE": str(path), "PRODUCTION_ML_OWNER_PID": str(os.getpid())}
        process = subprocess.Popen(
            [sys.executable, "worker.py"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return WatchedWorker(0, 0, process.pid, AnswerFiles(path))

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def ask_twice(worker: WatchedWorker) -> tuple[Activity, str, bool, bool]:
    first = ask_for_stacks([worker])[0]
    time.sleep(0.2)  # CPU time grows with time alone
    return judge(first, ask_for_stacks([worker])[0], worker.pid)


@pytest.mark.parametrize(("call", "is_busy"), [("loop", True), ("wait", False), ("hold_the_gil", False)])
def test_a_worker_tells_its_line_whatever_holds_it(start, call, is_busy):
    activity, place, found_busy, _ = ask_twice(start(f"{call}()"))

    assert activity is Activity.WORK
    assert f"in {call}" in place
    assert found_busy is is_busy


def test_of_a_stopped_worker_the_kernel_tells(start):
    worker = start("wait()")
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)

    answer = ask_for_stacks([worker])[0]

    assert (answer.process.state, answer.stack) == ("stopped", ())


def test_a_process_without_a_handler_is_not_killed_by_the_question(start):
    worker = start("wait()", "import time\ndef wait():\n    print('ready', flush=True)\n    time.sleep(1000)")

    activity, _, _, _ = ask_twice(worker)

    assert activity is Activity.UNKNOWN
    assert look_at(worker.pid).state == "sleeping"


def test_a_data_loader_worker_that_hangs_is_named_with_its_line(start):
    worker = start("start_data_worker()")

    [finding], dump = data_worker_findings(worker)

    assert "its DataLoader worker" in finding
    assert "in hang_in_the_dataset" in finding
    assert "hang_in_the_dataset" in dump


def test_a_worker_hands_out_its_flight_recorder(start):
    assert 0 in ask_for_flight_recorders([start("wait()")])


def test_a_worker_that_holds_the_gil_is_not_waited_for_without_end(start):
    worker = start("hold_the_gil()")
    while (place := ask_twice(worker)[1]) != ask_twice(worker)[1] or "hold_the_gil" not in place:
        pass  # between its print and the lock it would still answer

    assert ask_for_flight_recorders([worker]) == {}


def test_the_flight_recorder_tells_the_last_collective():
    flight = b"""{"pg_status": {"0": {"last_enqueued_collective": 4}, "1": {"last_enqueued_collective": -1}},
        "entries": [{"record_id": 1, "profiling_name": "nccl:all_reduce"},
                    {"record_id": 0, "profiling_name": "nccl:broadcast"}]}"""

    assert last_collective(flight) == (4, "nccl:all_reduce")
    assert last_collective(b"") == (None, None)
    assert last_collective(b"{}") == (None, None)


def test_a_stopped_process_can_be_killed(start):
    worker = start("wait()")
    os.kill(worker.pid, signal.SIGSTOP)

    kill(worker.pid)

    status = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert status.si_status == signal.SIGKILL
