"""The demo's displays show what they are told."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from production_ml.demo.display import LiveDisplay, PlainDisplay, TrainingView, curve

VIEW = TrainingView(
    step=10, steps=100, loss=0.5, accuracy=0.9, samples_per_second=1234.0, workers="attempt 1   rank 0: pid 7"
)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_tell_every_fact_and_how_a_station_ended(console):
    display = PlainDisplay(console)

    display.begin("Train")
    display.fact("killed [rank 1]")
    display.end(failed=True)

    assert "Train ..." in printed(console)
    assert "  killed [rank 1]\n" in printed(console)
    assert "Train: FAILED in" in printed(console)


def test_the_live_table_shows_facts_and_the_training_while_it_lasts(console):
    display = LiveDisplay()
    display.begin("Train")
    display.fact("a fact")
    display.training(VIEW)
    console.print(display)

    assert "step 10 of 100" in printed(console)
    assert "1,234 samples/s" in printed(console)
    assert "rank 0: pid 7" in printed(console)

    display.end()
    after = Console(file=io.StringIO(), width=100)
    after.print(display)
    assert "a fact" in printed(after)
    assert "✓" in printed(after)
    assert "step 10 of 100" not in printed(after)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([0.0, 1.0], "▁█"),
        ([2.0, 2.0], "▁▁"),
        ([float("nan"), 3.0, float("inf")], "▁"),
        ([0.0, 0.0, 7.0, 7.0], "▁▁██"),
        ([100.0, 10.0, 1.0], "█▅▁"),
    ],
)
def test_a_curve_is_as_high_as_its_values(values, bars):
    assert curve(values, width=60) == bars


def test_a_long_curve_is_averaged_into_its_width():
    assert curve([0.0] * 50 + [1.0] * 50, width=2) == "▁█"
