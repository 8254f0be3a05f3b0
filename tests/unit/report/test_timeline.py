"""The timeline shows who was there, what failed, and what was saved, on rows that a screen can hold."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from production_ml.report.timeline import timeline, timeline_rows


def trace_named(figure, name):
    return next(trace for trace in figure["data"] if trace["name"] == name)


def test_a_recovered_run_is_told_on_one_axis(recovered):
    figure = timeline(recovered)

    go.Figure(figure)
    assert timeline_rows(recovered) == ["launcher", "rank 0", "rank 1"]
    assert trace_named(figure, "attempt 0")["y"] == ["rank 0", "rank 1"]
    assert len(trace_named(figure, "checkpoint saved")["x"]) == 15
    assert trace_named(figure, "checkpoint loaded")["y"] == ["rank 0", "rank 1"]
    assert "Loss spiked" in trace_named(figure, "alert")["text"][0]
    (label,) = figure["layout"]["annotations"]
    assert label["text"] == "<b>SIGKILL</b>, rank 1<br>back in 1.00 s"


def test_bars_begin_and_end_with_the_records_of_each_rank(run, read):
    run.event(1, "run_started")
    run.metrics(5, 0, {"loss": 1.0})
    run.event(2, "run_started", rank=1)
    run.event(9, "monitor_closed", rank=1)

    (bars,) = timeline(read())["data"]

    assert (bars["y"], bars["base"], bars["x"]) == (["rank 0", "rank 1"], [0.0, 1.0], [4.0, 7.0])


@pytest.mark.parametrize("name", ["checkpoint_damaged", "checkpoint_save_failed", "alert", "exception"])
def test_what_a_person_has_to_know_of_is_marked_and_shown_as_text(run, read, name):
    run.event(1, name, step=7, level="error", message="<b>%{x}</b>", title="<script>")

    text = timeline(read())["data"][-1]["text"][0]

    assert "step 7" in text
    assert "&lt;b&gt;%{x}&lt;/b&gt;" in text
    assert "<script>" not in text


def test_many_failures_are_labelled_with_their_numbers_in_the_table(run, read):
    for attempt in range(5):
        run.metrics(10 * attempt, attempt, {"loss": 1.0}, attempt=attempt)

    annotations = timeline(read())["layout"]["annotations"]

    assert [label["text"] for label in annotations] == ["#1", "#2", "#3", "#4"]


def test_of_very_many_ranks_those_that_failed_are_shown(run, read):
    for rank in range(100):
        run.event(rank / 100, "run_started", rank=rank)
    run.launcher_event(2, "worker_failed", attempt=0, rank=77, exit_code=1, signal=None, reason="")

    rows = timeline_rows(read())

    assert len(rows) <= 33
    assert "rank 77" in rows
    assert rows[:2] == ["launcher", "rank 0"]


def test_ten_thousand_checkpoints_are_thinned_out(run, read):
    for step in range(10_000):
        run.event(step, "checkpoint_saved", step=step)

    assert len(trace_named(timeline(read()), "checkpoint saved")["x"]) == 400
