"""What the demo says about served traffic is computed from the answers, and a wrong split fails it."""

from __future__ import annotations

import pytest

from production_ml.demo.children import StationError
from production_ml.demo.traffic import Answer, check_split, figures, read_test_split


def answers(version: str, count: int, correct: int) -> list[Answer]:
    return [Answer(version, index < correct, seconds=(index + 1) / 1000) for index in range(count)]


def test_figures_are_those_of_each_version():
    champion, challenger = figures([*answers("1", 80, 76), *answers("2", 20, 10)])

    assert (champion.requests, champion.share, champion.accuracy) == (80, 0.8, 0.95)
    assert champion.median_ms == pytest.approx(40.5)
    assert champion.p99_ms == pytest.approx(80)
    assert (challenger.requests, challenger.share, challenger.accuracy) == (20, 0.2, 0.5)


def test_a_split_as_wished_passes():
    check_split(figures([*answers("1", 790, 0), *answers("2", 210, 0)]), {"1": 0.8, "2": 0.2})


@pytest.mark.parametrize("challenger", [0, 100, 300])
def test_a_split_that_chance_does_not_explain_fails(challenger):
    found = figures([*answers("1", 1000 - challenger, 0), *answers("2", challenger, 0)])

    with pytest.raises(StationError, match="of the requests"):
        check_split(found, {"1": 0.8, "2": 0.2})


def test_only_the_test_split_is_sent(tmp_path):
    table = tmp_path / "digits.csv"
    table.write_text("split,label,pixel_00\ntrain,1,2\ntest,3,4\n")

    assert read_test_split(table) == [(3, [4])]
