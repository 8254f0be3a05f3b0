"""A verdict says what the logs say, and finds a reason in everything that was lost."""

from __future__ import annotations

import dataclasses

import pytest

from production_ml.drill.verdict import Course, Weights, course, first_sign, first_step_after, shortcoming

REFERENCE = Course(first_metrics_at=0.0, last_metrics_at=10.0, steps=frozenset(range(5)), steps_redone=0)
SAME = Weights(are_equal=True, are_finite=True, step=5, reference_step=5)


def test_steps_that_a_resume_undid_do_not_stand(log_of):
    log = log_of(
        [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0), (1, 1, 5.0), (1, 2, 6.0), (1, 3, 7.0)],
        [("attempt_started", 0, 0.5), ("worker_failed", 0, 3.5), ("attempt_started", 1, 4.0)],
    )

    found = course(log)

    assert found is not None
    assert found.steps == {0, 1, 2, 3}
    assert found.steps_redone == 2
    assert found.training_seconds == 6.0


def test_a_gap_after_a_resume_is_seen(log_of):
    found = course(log_of([(0, 0, 1.0), (0, 1, 2.0), (1, 3, 5.0), (1, 4, 6.0)]))

    assert found is not None
    assert 2 not in found.steps


def test_a_run_that_logs_nothing_has_no_course(log_of):
    assert course(log_of([])) is None


def test_signs_before_the_fault_do_not_count(log_of):
    log = log_of([], [("worker_failed", 0, 1.0), ("worker_failed", 0, 9.0), ("other", 0, 5.0)])

    assert first_sign(log, frozenset({"worker_failed"}), since=2.0) == ("worker_failed", 9.0)
    assert first_sign(log, frozenset({"nosuch"}), since=2.0) is None


def test_after_a_restart_only_the_new_workers_show_that_training_goes_on(log_of):
    log = log_of([(0, 7, 5.1), (1, 6, 8.0)])

    assert first_step_after(log, since=5.0, struck_attempt=0) == 8.0


def test_without_a_restart_the_next_step_shows_it(log_of):
    assert first_step_after(log_of([(0, 7, 4.9), (0, 8, 5.1)]), since=5.0, struck_attempt=0) == 5.1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"exit_code": None}, "did not end"),
        ({"exit_code": 1}, "exit code 1"),
        ({"of": None}, "no step"),
        ({"of": dataclasses.replace(REFERENCE, steps=frozenset(range(4)))}, "ended at step 3"),
        (
            {"of": dataclasses.replace(REFERENCE, steps=frozenset({0, 1, 3, 4}))},
            "1 steps were lost, the first of them 2",
        ),
        ({"weights": dataclasses.replace(SAME, are_finite=False)}, "not finite"),
        ({"weights": dataclasses.replace(SAME, step=4)}, "of step 4"),
        ({"weights": dataclasses.replace(SAME, are_equal=False)}, "not those of the run without faults"),
        ({"weights": dataclasses.replace(SAME, are_equal=False), "keeps_weights": False}, ""),
        ({"weights": None}, ""),
    ],
)
def test_whatever_was_lost_is_a_reason(change, why):
    facts = {"exit_code": 0, "of": REFERENCE, "reference": REFERENCE, "weights": SAME, "keeps_weights": True, **change}

    said = shortcoming(**facts)

    assert why in said
    assert bool(said) == bool(why)
