"""How a run ended is what its log says, and no more."""

from __future__ import annotations

import pytest

from production_ml.report.outcome import Outcome, ending


@pytest.mark.parametrize(
    ("told", "outcome"),
    [("succeeded", Outcome.FINISHED), ("failed", Outcome.FAILED), ("interrupted", Outcome.INTERRUPTED)],
)
def test_the_launcher_has_the_last_word(run, read, told, outcome):
    run.metrics(0, 0, {"loss": 1.0})
    run.launcher_event(1, "launch_finished", outcome=told, exit_code=3)

    found = ending(read().log)

    assert found.outcome == outcome
    assert "exit code 3" in found.because


def test_a_run_that_is_launched_again_runs_again(run, read):
    run.launcher_event(0, "launch_finished", outcome="failed", exit_code=1)
    run.launcher_event(1, "attempt_started", attempt=1, world_size=1)

    assert ending(read().log).outcome == Outcome.RUNNING


def test_without_a_launcher_a_run_is_finished_when_every_rank_of_the_newest_attempt_has_closed(run, read):
    run.event(0, "monitor_closed", rank=0)
    run.event(1, "run_restarted", rank=0, attempt=1)
    run.event(1, "run_restarted", rank=1, attempt=1)
    run.event(2, "monitor_closed", rank=0, attempt=1)
    assert ending(read().log).outcome == Outcome.RUNNING

    run.event(3, "monitor_closed", rank=1, attempt=1)
    assert ending(read().log).outcome == Outcome.FINISHED


def test_an_exception_is_a_failure_though_the_monitor_was_closed_after_it(run, read):
    run.event(0, "exception", rank=1, level="error", message="ValueError: loss is NaN")
    run.event(1, "monitor_closed", rank=1)

    found = ending(read().log)

    assert found.outcome == Outcome.FAILED
    assert "rank 1: ValueError: loss is NaN" in found.because


def test_an_exception_that_a_restart_followed_is_history(run, read):
    run.event(0, "exception", level="error", message="ValueError")
    run.event(1, "monitor_closed", attempt=1)

    assert ending(read().log).outcome == Outcome.FINISHED


def test_a_log_without_an_end_is_a_running_run_unless_its_processes_are_gone(run, read):
    run.metrics(0, 0, {"loss": 1.0})

    assert ending(read().log).outcome == Outcome.RUNNING
    assert ending(read().log, owners_are_gone=True).outcome == Outcome.CUT_SHORT


def test_an_empty_log_says_that_nothing_was_logged(run, read):
    assert "nothing was logged" in ending(read().log).because
