"""Sizes and counts read well."""

from __future__ import annotations

import pytest

from production_ml.cli.checkpoint.display import count_text, progress, size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 60, "5120.0 PiB")],
)
def test_a_size_is_in_the_unit_that_fits(size_bytes, text):
    assert size_text(size_bytes) == text


def test_one_is_no_plural():
    assert [count_text(number, "tensor") for number in (0, 1, 2000)] == ["0 tensors", "1 tensor", "2,000 tensors"]


def test_a_progress_bar_that_nobody_watches_shows_nothing(capfd):
    with progress("step 1", 10) as on_bytes:
        on_bytes(5)

    assert capfd.readouterr() == ("", "")
