"""Exit codes, error files and printed tracebacks become a reason that a person can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from production_ml.fault_tolerance.launcher.failures import (
    WorkerFailure,
    advice,
    explain,
    root_cause_first,
    signal_name,
)

NO_FILE = Path("no-error-file")
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "    load()",
    "ValueError: the data is boom",
]


def failure(*, rank: int, exit_code: int) -> WorkerFailure:
    return WorkerFailure(
        attempt=0,
        rank=rank,
        local_rank=rank,
        pid=100 + rank,
        exit_code=exit_code,
        signal=signal_name(exit_code),
        reason="",
        traceback=None,
    )


@pytest.mark.parametrize(
    ("exit_code", "name"),
    [(-9, "SIGKILL"), (-15, "SIGTERM"), (137, "SIGKILL"), (143, "SIGTERM"), (-40, "signal 40")],
)
def test_a_signal_is_named_whether_the_kernel_or_a_shell_reports_it(exit_code, name):
    assert signal_name(exit_code) == name


@pytest.mark.parametrize("exit_code", [1, 2, 127, 128, 255])
def test_an_exit_code_of_the_script_itself_is_no_signal(exit_code):
    assert signal_name(exit_code) is None


def test_the_recorded_error_goes_before_what_was_printed(tmp_path):
    recorded = {"message": {"message": "KeyError: 'label'", "extraInfo": {"py_callstack": "the whole stack"}}}
    (tmp_path / "error.json").write_text(json.dumps(recorded))

    assert explain(1, error_file=tmp_path / "error.json", stderr=TRACEBACK) == ("KeyError: 'label'", "the whole stack")


@pytest.mark.parametrize("content", ["", '{"message": {', "[]", '{"message": 7}', '{"message": {"extraInfo": {}}}'])
def test_a_torn_error_file_leaves_the_traceback_on_stderr(tmp_path, content):
    (tmp_path / "error.json").write_text(content)

    reason, _ = explain(1, error_file=tmp_path / "error.json", stderr=TRACEBACK)

    assert reason == "ValueError: the data is boom"


def test_the_last_traceback_counts_and_what_follows_it_does_not():
    earlier = ["Traceback (most recent call last):", "OSError: caught and logged", "retrying"]
    later = ["/usr/lib/python3/resource_tracker.py: UserWarning: leaked"]

    reason, traceback = explain(1, error_file=NO_FILE, stderr=[*earlier, *TRACEBACK, *later])

    assert reason == "ValueError: the data is boom"
    assert traceback == "\n".join(TRACEBACK)


def test_the_rank_that_torch_puts_before_each_line_is_taken_off():
    prefixed = [f"[rank12]: {line}" for line in TRACEBACK]

    assert explain(1, error_file=NO_FILE, stderr=prefixed) == ("ValueError: the data is boom", "\n".join(TRACEBACK))


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(-9, "killed by SIGKILL"), (3, "exit code 3"), (1, "exit code 1"), (-11, "killed by SIGSEGV")],
)
def test_without_a_traceback_the_exit_code_is_the_reason(exit_code, reason):
    assert explain(exit_code, error_file=NO_FILE, stderr=["step 7"]) == (reason, None)


def test_a_traceback_that_was_logged_earlier_is_not_why_a_signal_came():
    assert explain(-9, error_file=NO_FILE, stderr=TRACEBACK) == ("killed by SIGKILL", None)


def test_of_failures_seen_together_the_killed_worker_is_the_cause():
    seen = [failure(rank=0, exit_code=1), failure(rank=1, exit_code=-6), failure(rank=2, exit_code=-9)]

    assert [found.rank for found in root_cause_first(seen)] == [2, 0, 1]


def test_a_sigkill_is_explained_by_the_memory_killer():
    assert "out-of-memory" in advice(failure(rank=0, exit_code=-9))
