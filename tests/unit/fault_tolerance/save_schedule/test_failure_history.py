"""The run's own failures are counted from its launcher's log, and outweigh what was assumed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from production_ml.fault_tolerance.save_schedule.failure_history import (
    FailureHistory,
    mean_time_between_failures,
    own_failure_history,
    read_failure_history,
)
from production_ml.testing.synthetic_run import SyntheticRun

DAY = timedelta(days=1)


def test_failures_and_the_time_trained_are_those_of_the_launchers_log(tmp_path):
    with SyntheticRun(tmp_path) as run:
        run.launcher_event(0, "attempt_started", attempt=0, world_size=2)
        run.launcher_event(600, "worker_failed", attempt=0, rank=1, reason="killed")
        run.launcher_event(700, "attempt_started", attempt=1, world_size=2)
        run.launcher_event(1000, "worker_failed", attempt=1, rank=0, reason="killed")
        run.launcher_event(1000, "worker_failed", attempt=1, rank=1, reason="killed")
        run.launcher_event(1100, "attempt_started", attempt=2, world_size=2)

    history = own_failure_history({"PRODUCTION_ML_RUN_DIR": str(tmp_path)})

    assert history == FailureHistory(failures=2, observed_seconds=900)


def test_a_run_without_a_launcher_and_a_directory_without_a_run_have_no_failures(tmp_path):
    assert read_failure_history(tmp_path) == FailureHistory()
    with SyntheticRun(tmp_path) as run:
        run.metrics(0, 1, {"train/loss": 1.0})
    assert read_failure_history(tmp_path) == FailureHistory()
    assert own_failure_history({}) == FailureHistory()


def test_without_evidence_the_prior_counts():
    assert mean_time_between_failures(FailureHistory(), DAY) == DAY


@given(st.integers(50, 1000), st.floats(60, 1e6))
def test_the_prior_decays_as_evidence_comes(failures, truth):
    history = FailureHistory(failures=failures, observed_seconds=failures * truth)

    estimate = mean_time_between_failures(history, timedelta(seconds=truth * 10))

    assert estimate.total_seconds() == pytest.approx(truth, rel=0.2)


def test_time_without_a_failure_makes_the_next_one_less_likely():
    quiet = FailureHistory(observed_seconds=10 * 86400)

    assert mean_time_between_failures(quiet, DAY) == 11 * DAY
