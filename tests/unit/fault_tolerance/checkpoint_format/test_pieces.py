"""Runs of elements become boxes and come back from rows, with no element lost or doubled."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from production_ml.fault_tolerance.checkpoint_format.boxes import whole
from production_ml.fault_tolerance.checkpoint_format.pieces import boxes_of_run, pieces_of_run, rows_around, run_within


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    count = torch.Size(shape).numel()
    start = draw(st.integers(0, count))
    return shape, start, draw(st.integers(start, count))


@given(runs())
def test_the_boxes_of_a_run_hold_its_elements_once_and_in_order(run):
    shape, start, stop = run
    elements = torch.arange(torch.Size(shape).numel()).reshape(shape)

    boxes = list(boxes_of_run(shape, start, stop))

    found = [elements[box.slices_within(whole(shape))].flatten() for box in boxes]
    assert torch.cat([*found, torch.empty(0)]).tolist() == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(runs())
def test_a_run_is_found_in_the_rows_around_it_and_in_the_whole(run):
    shape, start, stop = run
    elements = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows = rows_around(shape, start, stop)

    found = run_within(elements[rows.slices_within(whole(shape))], shape, start, stop)

    assert found.tolist() == list(range(start, stop))
    assert run_within(elements, shape, start, stop).tolist() == list(range(start, stop))


def test_pieces_are_views_of_the_run_under_keys_of_their_own():
    run = torch.arange(7.0)

    pieces = dict(pieces_of_run("model.w", (3, 4), 2, run))

    assert list(pieces) == ["model.w@0", "model.w@1", "model.w@2"]
    assert [piece.data.tolist() for piece in pieces.values()] == [[[0, 1]], [[2, 3, 4, 5]], [[6]]]
    assert all(piece.data.untyped_storage().data_ptr() == run.untyped_storage().data_ptr() for piece in pieces.values())
