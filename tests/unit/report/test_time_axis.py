"""One axis of time for all charts, in the unit that its length asks for."""

from __future__ import annotations

import pytest

from production_ml.report.time_axis import TimeAxis, failure_shapes
from production_ml.testing.synthetic_run import START


@pytest.mark.parametrize(
    ("duration", "unit", "end"), [(20, "seconds", 20), (1800, "minutes", 30), (36_000, "hours", 10)]
)
def test_the_unit_fits_the_duration(run, read, duration, unit, end):
    run.event(0, "run_started")
    run.event(duration, "monitor_closed")

    axis = TimeAxis.of(read())

    assert axis.unit == unit
    assert axis.at(START + duration) == pytest.approx(end)
    assert axis.layout()["range"][1] > end


def test_a_run_of_one_record_has_an_axis(run, read):
    run.event(0, "run_started")

    assert TimeAxis.of(read()).layout()["range"][1] > 0


def test_a_failure_is_a_line_and_the_time_until_training_went_on_is_shaded(recovered):
    line, shade = failure_shapes(recovered, TimeAxis.of(recovered))

    assert (line["type"], line["x0"], line["x1"]) == ("line", shade["x0"], shade["x0"])
    assert shade["x1"] - shade["x0"] == pytest.approx(recovered.recoveries[0].down_seconds, abs=1e-4)


def test_a_failure_without_a_restart_is_a_line_alone(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    run.launcher_event(1, "worker_failed", attempt=0, rank=0, exit_code=1, signal=None, reason="")

    assert [shape["type"] for shape in failure_shapes(read(), TimeAxis.of(read()))] == ["line"]
