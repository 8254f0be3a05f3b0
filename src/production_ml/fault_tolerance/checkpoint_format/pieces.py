"""Runs of elements as boxes: what is cut by count, as ZeRO cuts tensors, stands in a checkpoint in its own shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor that this rank alone has, and writes."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    box: Box
    data: torch.Tensor
    """The box's elements in the box's shape; still the training's own memory."""


def pieces_of_run(name: str, shape: tuple[int, ...], start: int, data: torch.Tensor) -> Iterator[tuple[str, Piece]]:
    """The elements from `start` on of a tensor in row-major order, as pieces under keys that no other piece has.

    Args:
        name: The tensor's.
        shape: Of the whole tensor.
        start: The place of the run's first element.
        data: The run, 1-dimensional.
    """
    position = 0
    for number, box in enumerate(boxes_of_run(shape, start, start + data.numel())):
        size = math.prod(box.shape)
        yield f"{name}@{number}", Piece(name, shape, box, data[position : position + size].view(box.shape))
        position += size


def boxes_of_run(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The fewest boxes that hold the elements `start ≤ i < stop` of a tensor, in order: 2 * dimensions - 1 at most."""
    if start >= stop:
        return
    if not shape:
        yield whole(())
        return
    row = math.prod(shape[1:])
    while start < stop:
        index, begin = divmod(start, row)
        rows = (stop - start) // row if begin == 0 else 0
        if rows:
            yield Box((index, *(0,) * (len(shape) - 1)), (rows, *shape[1:]))
            start += rows * row
            continue
        end = min(row, begin + stop - start)
        for inner in boxes_of_run(shape[1:], begin, end):
            yield Box((index, *inner.offsets), (1, *inner.shape))
        start += end - begin


def rows_around(shape: tuple[int, ...], start: int, stop: int) -> Box:
    """The box of the fewest whole rows (of the first dimension) that hold a run of elements."""
    if not shape or start >= stop:
        return whole(shape) if start < stop else Box((0,) * len(shape), (0,) * len(shape))
    row = math.prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    return Box((first, *(0,) * (len(shape) - 1)), (last - first + 1, *shape[1:]))


def run_within(read: torch.Tensor, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    """The run, 1-dimensional, out of what was read: the whole tensor, or what `rows_around` names."""
    if start >= stop:
        return read.new_empty(0)
    row = math.prod(shape[1:])
    first = 0 if tuple(read.shape) == shape else start // row * row
    return read.reshape(-1)[start - first : stop - first]
