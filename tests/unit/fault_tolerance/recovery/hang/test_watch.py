"""A worker's watch over itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError, ExitCode
from production_ml.fault_tolerance.recovery.hang import HangWatch, paused

TRAINING = """
import ctypes, sys, time
import torch
from production_ml.fault_tolerance import HangLimits, HangWatch, paused

weight = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)

def train():
    for _ in range(6):
        weight.sum().backward()
        optimizer.step()
        time.sleep(0.3)  # the watch looks four times a second, and learns from three

def sleep_for_ever():
    time.sleep(1000)

def hold_the_gil_for_ever():
    library = ctypes.PyDLL(None)
    lock = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)

def be_slow():
    until = time.monotonic() + 2
    while time.monotonic() < until: pass

with HangWatch(limits=HangLimits(floor_seconds=0.7, raise_factor=10), directory="hangs"):
    train()
    {}
print("finished")
"""


def run(last: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAINING.format(last)], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_a_worker_that_hangs_ends_with_a_code_for_a_restart_and_leaves_its_stacks(tmp_path):
    done = run("sleep_for_ever()", tmp_path)

    assert done.returncode == ExitCode.RESTART_ME
    assert "in sleep_for_ever" in done.stderr
    assert "in sleep_for_ever" in (tmp_path / "hangs/hang-rank-0.txt").read_text()


def test_a_c_call_that_holds_the_gil_is_ended_too(tmp_path):
    done = run("hold_the_gil_for_ever()", tmp_path)

    assert done.returncode == 1
    assert "in hold_the_gil_for_ever" in (tmp_path / "hangs/hang-rank-0.txt").read_text()


@pytest.mark.parametrize("last", ["be_slow()", "with paused(): time.sleep(2)"])
def test_a_worker_that_is_slow_or_says_that_it_pauses_finishes(tmp_path, last):
    done = run(last, tmp_path)

    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr
    assert list((tmp_path / "hangs").iterdir()) == []


def test_a_pause_without_a_watch_is_only_its_block():
    with paused():
        said = "evaluated"

    assert said == "evaluated"


@pytest.mark.parametrize("timeout", [0, -1.0, "soon", "off"])
def test_another_timeout_is_refused(timeout):
    with pytest.raises(ConfigError):
        HangWatch(timeout)
