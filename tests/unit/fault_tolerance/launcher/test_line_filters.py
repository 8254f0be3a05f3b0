"""Lines that match are copied into one file for all ranks."""

from __future__ import annotations

from production_ml.fault_tolerance.launcher.line_filters import LineFilter


def test_matching_lines_of_all_ranks_are_copied(tmp_path):
    sources = {0: tmp_path / "0.log", 1: tmp_path / "1.log"}
    sources[0].write_text("loss 1\nnoise\n")
    sources[1].write_text("noise\naccuracy 2\n")

    LineFilter(sources, tmp_path / "filtered.log", ["loss", "accuracy"]).close()

    assert sorted((tmp_path / "filtered.log").read_text().splitlines()) == ["[0]:loss 1", "[1]:accuracy 2"]


def test_without_anything_to_look_for_no_file_is_made(tmp_path):
    LineFilter({0: tmp_path / "0.log"}, tmp_path / "filtered.log", []).close()

    assert not (tmp_path / "filtered.log").exists()
