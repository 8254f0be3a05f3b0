"""What a failure cost is read from the log: who failed, how long, and which steps were made twice."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.monitoring.recoveries import attempts, failures, recoveries
from production_ml.monitoring.run_log import RunLog
from production_ml.testing.synthetic_run import START, SyntheticRun, write_recovered_run


@pytest.fixture
def run(tmp_path: Path):
    with SyntheticRun(tmp_path / "run") as run:
        yield run


def read(run: SyntheticRun) -> RunLog:
    return RunLog.open(run.run.path)


def train(run: SyntheticRun, at: float, steps: range, *, attempt: int = 0, rank: int = 0) -> None:
    """One step per second."""
    for offset, step in enumerate(steps):
        run.metrics(at + offset, step, {"train/loss": 1.0}, attempt=attempt, rank=rank)


def kill(run: SyntheticRun, at: float, *, attempt: int, rank: int = 0) -> None:
    facts = {"local_rank": rank, "pid": 1, "exit_code": -9, "signal": "SIGKILL", "reason": "killed by SIGKILL"}
    run.launcher_event(at, "worker_failed", attempt=attempt, rank=rank, **facts)


def test_a_run_without_failure_has_one_attempt_and_nothing_to_recover_from(run):
    run.event(0, "run_started")
    train(run, 1, range(5))
    run.event(6, "monitor_closed")

    (attempt,) = attempts(read(run))

    assert (attempt.first_step, attempt.last_step, attempt.world_size) == (0, 4, 2)
    assert (attempt.started_at, attempt.ended_at) == (START, START + 6)
    assert attempt.first_metrics_at == START + 1
    assert recoveries(read(run)) == ()
    assert failures(read(run)) == ()


def test_a_run_that_logged_nothing_has_no_attempts(run):
    assert attempts(read(run)) == ()
    assert recoveries(read(run)) == ()


def test_a_killed_worker_is_named_with_what_it_cost(tmp_path):
    write_recovered_run(tmp_path / "run", killed_at=140, save_every=20)

    (recovery,) = recoveries(RunLog.open(tmp_path / "run"))

    assert recovery.attempt == 1
    assert (recovery.failure.rank, recovery.failure.signal, recovery.failure.exit_code) == (1, "SIGKILL", -9)
    assert recovery.failure.reason == "killed by SIGKILL"
    assert (recovery.last_step_before, recovery.resumed_from_step, recovery.first_step_after) == (139, 120, 120)
    assert recovery.steps_redone == 20
    assert recovery.down_seconds == pytest.approx(1.0, abs=0.1)
    assert recovery.failure.detected_at - recovery.failure.failed_at == pytest.approx(0.3, abs=0.05)


def test_down_time_begins_with_the_launchers_word_when_survivors_wrote_later(run):
    train(run, 0, range(3))
    kill(run, 2.5, attempt=0, rank=1)
    run.event(2.9, "exception", level="error", message="ConnectionResetError: peer closed")
    train(run, 4, range(3), attempt=1)

    (recovery,) = recoveries(read(run))

    assert recovery.failure.failed_at == START + 2.5
    assert recovery.down_seconds == pytest.approx(1.5)


def test_two_failures_are_told_apart_and_their_redone_steps_add_up(run):
    train(run, 0, range(10))
    kill(run, 10, attempt=0, rank=0)
    run.event(11, "run_restarted", attempt=1)
    run.event(11.5, "checkpoint_loaded", attempt=1, step=5)
    train(run, 12, range(5, 8), attempt=1)
    kill(run, 15, attempt=1, rank=1)
    run.event(16, "checkpoint_loaded", attempt=2, step=5)
    train(run, 17, range(5, 12), attempt=2)

    first, second = recoveries(read(run))

    assert (first.failure.rank, first.last_step_before, first.first_step_after, first.steps_redone) == (0, 9, 5, 5)
    assert (second.failure.rank, second.last_step_before, second.first_step_after, second.steps_redone) == (1, 7, 5, 3)
    assert (first.attempt, second.attempt) == (1, 2)
    assert (first.down_seconds, second.down_seconds) == (pytest.approx(3.0), pytest.approx(3.0))


def test_a_failure_before_any_step_costs_time_and_no_steps(run):
    run.event(0, "run_started")
    kill(run, 1, attempt=0)
    run.event(2, "run_restarted", attempt=1)
    train(run, 3, range(3), attempt=1)

    (recovery,) = recoveries(read(run))

    assert (recovery.last_step_before, recovery.first_step_after, recovery.steps_redone) == (None, 0, 0)
    assert recovery.resumed_from_step is None
    assert recovery.down_seconds == pytest.approx(3.0)


def test_workers_that_died_before_they_wrote_are_known_from_the_launcher(run):
    run.launcher_event(0, "attempt_started", attempt=0, world_size=3)
    kill(run, 1, attempt=0, rank=2)
    run.launcher_event(1.5, "attempt_started", attempt=1, world_size=3)
    train(run, 4, range(3), attempt=1)

    (recovery,) = recoveries(read(run))

    assert [attempt.world_size for attempt in attempts(read(run))] == [3, 3]
    assert recovery.failure.rank == 2
    assert recovery.down_seconds == pytest.approx(3.0)


def test_an_attempt_that_made_no_step_does_not_hide_the_steps_lost_before_it(run):
    train(run, 0, range(10))
    kill(run, 10, attempt=0)
    run.event(11, "run_restarted", attempt=1)
    kill(run, 12, attempt=1)
    train(run, 14, range(6, 12), attempt=2)

    first, second = recoveries(read(run))

    assert (first.first_step_after, first.down_seconds, first.steps_redone) == (None, None, 0)
    assert (second.last_step_before, second.first_step_after, second.steps_redone) == (9, 6, 4)


def test_under_plain_torchrun_the_last_record_is_the_failure_and_nobody_knows_the_signal(run):
    train(run, 0, range(10))
    run.event(12, "run_restarted", attempt=1)
    train(run, 13, range(8, 12), attempt=1)

    (recovery,) = recoveries(read(run))

    failure = recovery.failure
    assert (failure.rank, failure.signal, failure.exit_code, failure.detected_at) == (None, None, None, None)
    assert failure.failed_at == START + 9
    assert recovery.down_seconds == pytest.approx(4.0)
    assert recovery.steps_redone == 2


def test_a_last_failure_that_nothing_followed_is_a_failure_without_a_recovery(run):
    train(run, 0, range(3))
    kill(run, 3, attempt=0, rank=1)
    run.launcher_event(3.1, "launch_finished", outcome="failed", exit_code=1)

    assert [(failure.attempt, failure.rank) for failure in failures(read(run))] == [(0, 1)]
    assert recoveries(read(run)) == ()


def test_a_run_that_succeeded_and_is_continued_later_did_not_fail(run):
    train(run, 0, range(3))
    run.launcher_event(3, "launch_finished", outcome="succeeded", exit_code=0)
    run.launcher_event(1000, "attempt_started", attempt=1, world_size=2)
    train(run, 1001, range(3, 6), attempt=1)

    assert failures(read(run)) == ()
    assert recoveries(read(run)) == ()


def test_a_run_that_was_interrupted_and_continued_says_so(run):
    train(run, 0, range(3))
    run.launcher_event(3, "launch_finished", outcome="interrupted", exit_code=130)
    run.launcher_event(10, "attempt_started", attempt=1, world_size=2)
    train(run, 11, range(2, 6), attempt=1)

    (recovery,) = recoveries(read(run))

    assert (recovery.failure.reason, recovery.failure.rank, recovery.steps_redone) == ("interrupted", None, 1)
    assert recovery.down_seconds == pytest.approx(9.0)


def test_a_restart_that_has_made_no_step_yet_is_shown_as_not_recovered(run):
    train(run, 0, range(3))
    kill(run, 3, attempt=0)
    run.launcher_event(3.5, "attempt_started", attempt=1, world_size=2)

    (recovery,) = recoveries(read(run))

    assert (recovery.first_step_after, recovery.recovered_at, recovery.down_seconds) == (None, None, None)


def test_a_wall_clock_that_was_set_back_makes_the_down_time_unknown_and_not_zero(run):
    train(run, 3600, range(3))
    kill(run, 3603, attempt=0)
    train(run, 5, range(2, 4), attempt=1)

    (recovery,) = recoveries(read(run))

    assert recovery.down_seconds is None
    assert (recovery.recovered_at, recovery.first_step_after) == (START + 5, 2)


def test_ranks_that_interleave_count_by_the_farthest_step_before_and_the_nearest_after(run):
    train(run, 0, range(10), rank=0)
    train(run, 0.9, range(9), rank=1)  # one step behind, and its last record is the newest
    kill(run, 9.95, attempt=0, rank=1)
    train(run, 12.0, range(6, 8), attempt=1, rank=1)
    train(run, 12.5, range(5, 8), attempt=1, rank=0)

    (recovery,) = recoveries(read(run))

    assert (recovery.last_step_before, recovery.first_step_after, recovery.steps_redone) == (9, 5, 5)
    assert recovery.recovered_at == START + 12.0


def test_only_values_that_are_no_numbers_still_make_a_step(run):
    run.metrics(0, 0, {"train/loss": math.nan})
    run.metrics(1, 1, {"train/loss": math.inf})
    kill(run, 2, attempt=0)
    run.metrics(3, 1, {"train/loss": math.nan}, attempt=1)

    (recovery,) = recoveries(read(run))

    assert (recovery.last_step_before, recovery.first_step_after, recovery.steps_redone) == (1, 1, 1)


def test_the_load_right_before_training_is_the_one_resumed_from(run):
    train(run, 0, range(3))
    kill(run, 3, attempt=0)
    run.event(4.0, "checkpoint_loaded", attempt=1, step=9_000)  # a pretrained backbone
    run.event(4.1, "checkpoint_loaded", attempt=1, step=2)
    train(run, 5, range(2, 4), attempt=1)
    run.event(8, "checkpoint_loaded", attempt=1, step=3)  # the best one, for an evaluation

    (recovery,) = recoveries(read(run))

    assert recovery.resumed_from_step == 2


def test_the_first_worker_that_the_launcher_names_is_the_one_that_failed(run):
    train(run, 0, range(3))
    kill(run, 3.0, attempt=0, rank=1)
    run.launcher_event(3.1, "worker_failed", attempt=0, rank=0, exit_code=1, signal=None, reason="exited with 1")
    train(run, 5, range(3), attempt=1)

    (recovery,) = recoveries(read(run))

    assert (recovery.failure.rank, recovery.failure.signal) == (1, "SIGKILL")


def test_reading_recoveries_needs_no_torch():
    program = "import sys, production_ml.monitoring.recoveries; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
