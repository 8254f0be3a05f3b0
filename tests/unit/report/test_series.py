"""Metrics of all ranks become one line with a band, and a sick value is seen and counted."""

from __future__ import annotations

import math

import numpy as np

from production_ml.report.series import series_by_metric
from production_ml.testing.synthetic_run import START


def test_ranks_are_joined_step_by_step_into_mean_lowest_and_highest(run, read):
    for rank, step, at, loss in ((0, 0, 1, 1.0), (1, 0, 2, 3.0), (1, 1, 3, 5.0), (0, 1, 4, 4.0), (0, 2, 5, 7.0)):
        run.metrics(at, step, {"train/loss": loss}, rank=rank)

    series = read().series["train/loss"][0]

    assert series.steps.tolist() == [0, 1, 2]
    assert series.mean.tolist() == [2.0, 4.5, 7.0]
    assert series.lowest.tolist() == [1.0, 4.0, 7.0]
    assert series.highest.tolist() == [3.0, 5.0, 7.0]
    assert (series.wall_seconds - START).tolist() == [1.0, 3.0, 5.0]
    assert series.ranks == 2


def test_a_value_that_is_not_finite_is_a_gap_for_all_ranks_and_counted_each_time(run, read):
    for step, (first, second) in enumerate(((1.0, 1.0), (math.nan, 1.0), (math.inf, -math.inf), (2.0, 4.0))):
        run.metrics(step, step, {"train/loss": first}, rank=0)
        run.metrics(step + 0.1, step, {"train/loss": second}, rank=1)

    series = read().series["train/loss"][0]

    assert np.isnan(series.mean).tolist() == [False, True, True, False]
    assert series.not_finite == 3
    assert series.mean[3] == 3.0


def test_attempts_and_metrics_are_kept_apart_in_the_order_of_their_coming(run, read):
    run.metrics(0, 0, {"train/loss": 1.0, "lr": 0.1})
    run.metrics(1, 0, {"val/loss": 2.0}, attempt=1)
    run.metrics(2, 0, {"train/loss": 3.0}, attempt=1)

    series = read().series

    assert list(series) == ["train/loss", "lr", "val/loss"]
    assert {attempt: found.mean.tolist() for attempt, found in series["train/loss"].items()} == {0: [1.0], 1: [3.0]}


def test_steps_that_were_logged_out_of_order_are_sorted(run, read):
    for at, step in enumerate((3, 1, 2)):
        run.metrics(at, step, {"loss": float(step)})

    assert read().series["loss"][0].mean.tolist() == [1.0, 2.0, 3.0]


def test_no_metrics_are_no_series():
    assert series_by_metric([]) == {}
