"""The legend names what the charts show, and nothing that they do not."""

from __future__ import annotations

from production_ml.report.legend import metrics_legend, timeline_legend


def test_a_recovered_run_needs_every_explanation(recovered):
    legend = timeline_legend(recovered)

    for label in ("attempt 0", "attempt 1", "checkpoint saved", "checkpoint loaded", "alert", "failure"):
        assert label in legend
    assert "damaged" not in legend
    for label in ("attempt 0", "made again", "lowest to the highest rank"):
        assert label in metrics_legend(recovered)


def test_a_plain_run_of_one_rank_needs_none(run, read):
    run.metrics(0, 0, {"loss": 1.0})

    assert metrics_legend(read()) == ""
    assert "failure" not in timeline_legend(read())


def test_attempts_that_share_a_colour_share_an_item(run, read):
    for attempt in range(22):
        run.metrics(attempt, attempt, {"loss": 1.0}, attempt=attempt)

    legend = metrics_legend(read())

    assert legend.count("<li>") == 5
    assert "attempts 0, 5, 10, 15 and every 5th" in legend
