"""What a drill shows is what it found, and safe as a page."""

from __future__ import annotations

from production_ml.drill.presentation import COLUMNS, html_page, row
from production_ml.drill.verdict import Verdict

LOST = Verdict(fault="kill", seed=1, rank=0, step=7, is_survived=False, why="3 steps were lost & <more>", steps_lost=3)
SURVIVED = Verdict(
    fault="hang", seed=2, rank=1, step=8, is_survived=True, why="", detected_by="hang_found", detected_seconds=0.5,
    recovered_seconds=1.25, steps_redone=1, steps_lost=0, weights_are_equal=True, goodput_ratio=0.9,
)  # fmt: skip


def test_a_row_has_a_cell_for_each_column_and_nothing_is_made_up():
    assert row(SURVIVED.to_dict()) == ["hang", "yes", "1, 8", "0.50 s", "1.25 s", "1", "0", "same", "90%"]
    assert row(LOST.to_dict()) == ["kill", "no", "0, 7", "-", "-", "-", "3", "-", "-"]
    assert len(row(LOST.to_dict())) == len(COLUMNS)


def test_the_page_tells_why_and_runs_no_script_of_a_script_s_name():
    page = html_page(
        {
            "script": "<script>alert(1)</script>",
            "seed": 5,
            "steps": 300,
            "reference_seconds": 9.0,
            "verdicts": [LOST.to_dict(), SURVIVED.to_dict()],
            "unavailable": {"disk-full": "no unshare"},
        }
    )

    assert "<script>" not in page
    assert "3 steps were lost &amp; &lt;more&gt;" in page
    assert "1 of 2" in page
    assert "disk-full: no unshare" in page
