"""Child processes end with the demo, and say why when they fail."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from production_ml.demo.children import Children, StationError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_child_prints_is_returned(tmp_path):
    with Children(tmp_path) as children:
        assert children.run(python("print('done')"), tmp_path / "output") == "done\n"


def test_a_failing_child_is_quoted(tmp_path):
    with Children(tmp_path) as children, pytest.raises(StationError, match=r"exit code 3") as caught:
        children.run(python("print('no disk'); raise SystemExit(3)"), tmp_path / "output")

    assert "no disk" in str(caught.value)
    assert str(tmp_path / "output") in str(caught.value)


def test_leaving_the_block_ends_a_child_and_its_session(tmp_path):
    with Children(tmp_path) as children:
        child = children.start(["sleep", "600"], tmp_path / "output")
        assert child.is_running

    assert child.process.returncode == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(child.process.pid, 0)


def test_an_interrupt_ends_a_child_too(tmp_path):
    children = Children(tmp_path)

    started = []

    def interrupted() -> None:
        with children:
            started.append(children.start(["sleep", "600"], tmp_path / "output"))
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    # The test session has children of its own, such as the servers of other tests: only this one may be asked for.
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0].process.pid, os.WNOHANG)
