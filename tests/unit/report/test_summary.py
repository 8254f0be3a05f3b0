"""The figures at the top of the report are those of the log."""

from __future__ import annotations

import json
import math

import pytest

from production_ml.report.outcome import Ending, Outcome, ending
from production_ml.report.summary import loss_metric, summarize
from production_ml.report.throughput import throughput


def summary_of(story):
    return summarize(story, ending(story.log), throughput(story))


def test_a_recovered_run_in_figures(recovered):
    summary = summary_of(recovered)

    assert (summary.project, summary.experiment, summary.outcome) == ("shop", "exp-001", "finished")
    assert (summary.steps, summary.steps_redone, summary.restarts, summary.attempts) == (300, 20, 1, 2)
    assert (summary.checkpoints_saved, summary.checkpoints_damaged, summary.alerts, summary.exceptions) == (15, 0, 1, 0)
    assert summary.recovery_seconds == pytest.approx(1.0, abs=0.05)
    assert summary.throughput_metric == "train/samples_per_second"
    assert (summary.loss.name, summary.loss.not_finite) == ("train/loss", 1)
    assert summary.loss.lowest < summary.loss.final < 0.2
    assert summary.started_at == "2026-01-01T12:00:00.000Z"


def test_a_value_of_a_step_that_was_made_again_does_not_count(run, read):
    for step, loss in enumerate((3.0, 2.0, 0.001)):
        run.metrics(step, step, {"loss": loss})
    for step, loss in ((2, 1.5), (3, 1.25)):
        run.metrics(10 + step, step, {"loss": loss}, attempt=1)

    summary = summary_of(read())

    assert (summary.loss.lowest, summary.loss.lowest_step, summary.loss.final) == (1.25, 3, 1.25)
    assert (summary.steps, summary.steps_redone) == (4, 1)


def test_a_final_loss_that_is_nan_is_not_made_up(run, read):
    run.metrics(0, 0, {"loss": 2.0})
    run.metrics(1, 1, {"loss": math.nan})

    loss = summary_of(read()).loss

    assert math.isnan(loss.final)
    assert (loss.lowest, loss.lowest_step, loss.not_finite) == (2.0, 0, 1)


def test_a_restart_that_failed_before_its_first_step_is_down_time_once(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.event(4, "run_restarted", attempt=1)
    run.metrics(10, 0, {"loss": 1.0}, attempt=2)

    assert summary_of(read()).recovery_seconds == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["val/loss", "train/loss"], "train/loss"),
        (["lr", "train/cross_entropy_loss"], "train/cross_entropy_loss"),
        (["lr", "lossless"], None),
    ],
)
def test_the_loss_is_found_by_its_name(names, chosen):
    assert loss_metric(names) == chosen


def test_the_summary_is_plain_json_with_nan_as_text(run, read):
    run.metrics(0, 0, {"loss": math.nan})
    run.metrics(1, 0, {"loss": 1.0}, attempt=1)
    story = read()

    plain = json.loads(json.dumps(summary_of(story).to_dict(), allow_nan=False))

    assert plain["recoveries"][0]["down_seconds"] == pytest.approx(1.0)
    assert plain["metrics"][0]["not_finite"] == 1


def test_an_empty_run_has_figures_of_zero(run, read):
    summary = summarize(read(), Ending(Outcome.RUNNING, "nothing was logged yet"), None)

    assert (summary.steps, summary.restarts, summary.duration_seconds, summary.world_size) == (0, 0, 0.0, 0)
    assert (summary.started_at, summary.loss, summary.metrics) == (None, None, ())
