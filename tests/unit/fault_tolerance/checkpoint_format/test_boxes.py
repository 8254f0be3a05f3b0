"""Boxes cut and join tensors without losing or doubling an element."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, intersection, local_box, local_data, whole


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))

    def box() -> Box:
        begin = [draw(st.integers(0, size)) for size in shape]
        end = [draw(st.integers(start, size)) for start, size in zip(begin, shape, strict=True)]
        return Box(tuple(begin), tuple(stop - start for start, stop in zip(begin, end, strict=True)))

    return shape, box(), box()


@given(box_pairs())
def test_what_two_boxes_share_is_what_a_mask_says(pair):
    shape, one, other = pair
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    marks = torch.zeros(shape, dtype=torch.int64)
    for box in (one, other):
        marks[box.slices_within(whole(shape))] += 1

    common = intersection(one, other)

    if common is None:
        assert not (marks == 2).any()
    else:
        held = tensor[one.slices_within(whole(shape))][common.slices_within(one)]
        assert sorted(held.flatten().tolist()) == tensor[marks == 2].tolist()


def test_a_scalar_is_a_box_that_meets_itself():
    assert intersection(whole(()), whole(())) == whole(())


def test_an_empty_box_meets_nothing():
    assert intersection(whole((0, 3)), whole((0, 3))) is None


def test_a_plain_tensor_is_held_whole():
    tensor = torch.ones(2, 3, requires_grad=True)

    assert local_box(tensor) == Box((0, 0), (2, 3))
    assert local_data(tensor).data_ptr() == tensor.data_ptr()
    assert not local_data(tensor).requires_grad
