"""What the report knows: which steps count, when training was back, who was there."""

from __future__ import annotations

import math

from production_ml.report.story import failed_worker, failure_name, number_field, row_name
from production_ml.testing.synthetic_run import START


def test_the_steps_of_an_attempt_count_until_a_later_one_goes_through_them_again(run, read):
    for attempt, first, last in ((0, 0, 9), (1, 5, 7), (2, 4, 12)):
        for step in range(first, last + 1):
            run.metrics(20 * attempt + step, step, {"loss": 1.0}, attempt=attempt)

    story = read()

    assert [story.superseded_from(attempt) for attempt in range(3)] == [4, 4, math.inf]


def test_training_is_back_when_some_later_attempt_makes_a_step(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.event(5, "run_restarted", attempt=1)
    run.metrics(9, 0, {"loss": 1.0}, attempt=2)

    story = read()

    assert [story.back_at(failure) for failure in story.failures] == [START + 9, START + 9]
    assert [story.recovery_from(failure).attempt for failure in story.failures] == [1, 2]


def test_a_failure_that_nothing_followed_lasts_until_the_log_ends(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.launcher_event(1, "worker_failed", attempt=0, rank=0, exit_code=1, signal=None, reason="exited with 1")
    run.launcher_event(2, "launch_finished", outcome="failed", exit_code=1)

    story = read()

    (failure,) = story.failures
    assert story.recovery_from(failure) is None
    assert story.back_at(failure) == START + 2
    assert (failure_name(failure), failed_worker(failure)) == ("exit code 1", "rank 0")


def test_each_process_is_one_source_however_much_it_wrote(recovered):
    assert sorted((source.role, source.rank, source.attempt) for source in recovered.sources) == [
        ("launcher", 0, 0),
        ("rank", 0, 0),
        ("rank", 0, 1),
        ("rank", 1, 0),
        ("rank", 1, 1),
    ]
    assert (row_name("rank", 3), row_name("launcher", 0)) == ("rank 3", "launcher")


def test_an_empty_log_is_an_empty_story(run, read):
    story = read()

    assert (story.started_at, story.ended_at, story.sources, story.failures) == (0.0, 0.0, [], ())


def test_a_fact_that_is_no_number_is_not_taken_for_one(run, read):
    run.event(0, "checkpoint_saved", duration_seconds="NaN", size_bytes=True, stall_seconds=1)

    ((_, event),) = read().log.events()

    assert [number_field(event, name) for name in ("duration_seconds", "size_bytes", "stall_seconds", "none")] == [
        None,
        None,
        1.0,
        None,
    ]
