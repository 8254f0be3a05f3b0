"""Charts are sound plotly figures that show every attempt, every spike and every gap."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import pytest

from production_ml.report.charts import POINTS_PER_SERIES, metric_chart, points_per_series, throughput_chart
from production_ml.report.throughput import throughput


def chart_of(story, name):
    return metric_chart(story.series[name], story)


def trace_named(figure, name):
    return next(trace for trace in figure["data"] if trace["name"] == name)


@pytest.mark.parametrize("name", ["train/loss", "train/learning_rate", "val/accuracy"])
def test_plotly_knows_every_property_of_a_metric_chart(recovered, name):
    go.Figure(chart_of(recovered, name))


def test_plotly_knows_every_property_of_the_throughput_chart(recovered):
    figure = throughput_chart(throughput(recovered), recovered)

    go.Figure(figure)
    assert [trace["name"] for trace in figure["data"]] == ["attempt 0", "attempt 1"]
    assert len(figure["layout"]["shapes"]) == 2


def test_steps_that_were_made_again_are_faint_and_dotted_and_the_others_are_not(recovered):
    figure = chart_of(recovered, "train/loss")

    first, redone, second = (
        trace_named(figure, name) for name in ("attempt 0", "attempt 0, redone later", "attempt 1")
    )
    assert (first["x"][0], first["x"][-1]) == (0, 119)
    assert (redone["x"][0], redone["x"][-1]) == (119, 139)  # from the last that counts, so that the line does not break
    assert (second["x"][0], second["x"][-1]) == (120, 299)
    assert (redone["line"]["dash"], first["line"]["dash"]) == ("dot", "solid")
    assert redone["opacity"] < first["opacity"]
    assert first["line"]["color"] != second["line"]["color"]


def test_the_band_reaches_from_the_lowest_to_the_highest_rank_and_leaves_out_gaps(run, read):
    for step, (first, second) in enumerate(((1.0, 3.0), (2.0, 6.0), (math.nan, 1.0), (4.0, 5.0))):
        run.metrics(step, step, {"loss": first}, rank=0)
        run.metrics(step + 0.1, step, {"loss": second}, rank=1)

    figure = chart_of(read(), "loss")

    band = trace_named(figure, "attempt 0, all ranks")
    assert band["x"] == [0, 1, 1, 0, None, 3, 3]
    assert band["y"] == [3.0, 6.0, 2.0, 1.0, None, 5.0, 4.0]
    assert trace_named(figure, "attempt 0")["y"] == [2.0, 4.0, None, 4.5]


def test_one_rank_has_no_band(run, read):
    run.metrics(0, 0, {"loss": 1.0})

    assert [trace["name"] for trace in chart_of(read(), "loss")["data"]] == ["attempt 0"]


def test_a_long_run_is_drawn_with_few_points_and_its_spike(run, read):
    losses = np.random.default_rng(5).normal(1.0, 0.1, size=20_000)
    losses[13_577] = 50.0
    for step, loss in enumerate(losses.tolist()):
        run.metrics(step, step, {"loss": loss})

    (trace,) = chart_of(read(), "loss")["data"]

    assert len(trace["x"]) <= POINTS_PER_SERIES
    assert max(trace["y"]) == 50.0
    assert trace["x"][-1] == 19_999


def test_many_attempts_share_the_points_of_a_chart(run, read):
    for attempt in range(5):
        for step in range(1000):
            run.metrics(1000 * attempt + step, 1000 * attempt + step, {"loss": 1.0}, attempt=attempt)

    figure = chart_of(read(), "loss")

    assert sum(len(trace["x"]) for trace in figure["data"]) <= POINTS_PER_SERIES


def test_very_many_metrics_get_fewer_points_each():
    assert points_per_series(1) == points_per_series(100) == POINTS_PER_SERIES
    assert points_per_series(1000) < POINTS_PER_SERIES


def test_an_attempt_that_was_made_again_as_a_whole_is_drawn_dotted_as_a_whole(run, read):
    run.metrics(0, 5, {"loss": 1.0})
    run.metrics(1, 6, {"loss": 1.0})
    run.metrics(2, 4, {"loss": 1.0}, attempt=1)

    names = [trace["name"] for trace in chart_of(read(), "loss")["data"]]

    assert names == ["attempt 0, redone later", "attempt 1"]


def test_a_metric_that_is_nan_at_every_other_step_has_no_endless_band(run, read):
    for step in range(20_000):
        for rank in range(2):
            run.metrics(step, step, {"loss": math.nan if step % 2 else 1.0 + rank}, rank=rank)

    figure = chart_of(read(), "loss")

    assert len(trace_named(figure, "attempt 0, all ranks")["x"]) <= 3 * POINTS_PER_SERIES
    assert len(trace_named(figure, "attempt 0")["x"]) <= POINTS_PER_SERIES
