"""What the launcher saw is in the run log, and a person reads it in one line each."""

from __future__ import annotations

from production_ml.fault_tolerance.launcher.failures import WorkerFailure
from production_ml.fault_tolerance.launcher.journal import LaunchJournal
from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import RunLog

KILLED = WorkerFailure(
    attempt=0,
    rank=1,
    local_rank=1,
    pid=11,
    exit_code=-9,
    signal="SIGKILL",
    reason="killed by SIGKILL",
    traceback=None,
    stderr_tail=("step 7",),
)


def test_a_launch_with_one_failure_is_told_in_full(tmp_path):
    run = RunDirectory(tmp_path)
    run.create()
    run.claim(RunIdentity(project="p", experiment="e", run_id="r"))
    lines: list[str] = []
    journal = LaunchJournal(run, first_attempt=0, world_size=2, say=lines.append)

    journal.attempt_started(0, world_size=2, pids={0: 10, 1: 11})
    journal.workers_failed([KILLED])
    journal.restart_scheduled(1, restarts_left=2)
    journal.attempt_started(1, world_size=2, pids={0: 12, 1: 13})
    journal.finished("succeeded", 0)

    told = [(source.role, event.name, event.fields) for source, event in RunLog.open(tmp_path).events()]
    assert {role for role, _, _ in told} == {"launcher"}
    facts = {name: fields for _, name, fields in told}
    assert [name for _, name, _ in told].count("attempt_started") == 2
    assert facts["attempt_started"] == {"attempt": 1, "world_size": 2, "worker_pids": {"0": 12, "1": 13}}
    named = {field: facts["worker_failed"][field] for field in ("attempt", "rank", "pid", "exit_code", "signal")}
    assert named == {"attempt": 0, "rank": 1, "pid": 11, "exit_code": -9, "signal": "SIGKILL"}
    assert facts["restart_scheduled"] == {"attempt": 1, "restarts_left": 2}
    assert facts["launch_finished"] == {"outcome": "succeeded", "exit_code": 0}
    assert lines[1] == "attempt 0: rank 1 (pid 11) was killed by SIGKILL"
    assert len(lines) == 5
