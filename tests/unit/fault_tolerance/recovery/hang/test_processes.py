"""What the kernel tells of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from production_ml.fault_tolerance.recovery.hang.processes import catches, children_of, kernel_place, look_at


def test_a_process_is_seen_with_its_state_and_its_children():
    with subprocess.Popen(["sleep", "100"]) as child:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)

        facts = look_at(child.pid)
        children = children_of(os.getpid())
        place = kernel_place(child.pid)
        child.kill()

    assert (facts.name, facts.state) == ("sleep", "stopped")
    assert child.pid in children
    assert place.startswith("in the kernel at ") or os.geteuid() != 0
    assert look_at(child.pid).state == "ended"


def test_cpu_time_is_that_of_the_process():
    before = look_at(os.getpid()).cpu_seconds

    while sum(os.times()[:2]) < before + 0.1:
        pass

    assert look_at(os.getpid()).cpu_seconds > before


def test_only_a_signal_with_a_handler_is_caught():
    script = "import signal; signal.signal(signal.SIGRTMIN + 5, print); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()

        assert catches(child.pid, signal.SIGRTMIN + 5)
        assert not catches(child.pid, signal.SIGRTMIN + 6)

        child.communicate(b"\n")
    assert not catches(child.pid, signal.SIGRTMIN + 5)
