"""Throughput is what was logged as such, else what the times of rank 0's steps say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from production_ml.report.throughput import rate_metric, throughput


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train/loss", "train/steps_per_second", "train/samples_per_second"], "train/samples_per_second"),
        (["samples_per_second", "train/samples_per_second"], "train/samples_per_second"),
        (["val/samples_per_second", "train/steps_per_second"], "train/steps_per_second"),
        (["tokens_per_second"], "tokens_per_second"),
        (["train/data/examples_per_second"], "train/data/examples_per_second"),
        (["train/loss", "samples_per_second_total"], None),
    ],
)
def test_the_rate_of_training_is_found_by_its_name(names, chosen):
    assert rate_metric(names) == chosen


def test_a_logged_rate_is_taken_as_it_is(run, read):
    for step, value in enumerate((100.0, math.nan, 300.0, 200.0)):
        run.metrics(step, step, {"train/samples_per_second": value})

    rate = throughput(read())

    assert (rate.unit, rate.metric, rate.typical) == ("samples/s", "train/samples_per_second", 200.0)


def test_without_one_the_rate_comes_from_the_steps_and_the_time_down_does_not_count(run, read):
    for step in range(10):
        run.metrics(0.5 * step, step, {"loss": 1.0})
        run.metrics(0.5 * step, step, {"val/loss": 1.0})
    for step in range(5, 15):
        run.metrics(100 + 0.5 * step, step, {"loss": 1.0}, attempt=1)

    rate = throughput(read())

    assert (rate.unit, rate.metric) == ("steps/s", None)
    assert rate.typical == pytest.approx(2.0)
    assert [curve.rate.tolist() for curve in rate.curves.values()] == [pytest.approx([2.0] * 9)] * 2


def test_steps_that_were_logged_every_tenth_time_count_as_ten(run, read):
    for step in range(0, 50, 10):
        run.metrics(step / 20, step, {"loss": 1.0})

    assert throughput(read()).typical == pytest.approx(20.0)


def test_a_metric_on_an_axis_of_its_own_does_not_make_time_go_back(run, read):
    for step in range(100, 110):
        run.metrics(step - 100, step, {"loss": 1.0})
        run.metrics(step - 99.5, (step - 100) // 5, {"epoch_loss": 1.0})

    rate = throughput(read())

    assert all(np.nanmin(curve.rate) >= 0 for curve in rate.curves.values())


@pytest.mark.parametrize("steps", [0, 1])
def test_too_few_steps_have_no_throughput(run, read, steps):
    for step in range(steps):
        run.metrics(step, step, {"loss": 1.0})

    assert throughput(read()) is None


def test_a_rate_that_was_never_finite_is_none(run, read):
    run.metrics(0, 0, {"throughput": math.nan})

    assert throughput(read()) is None
