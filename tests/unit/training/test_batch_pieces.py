"""Pieces of a batch hold every sample once, in order, whatever the batch is made of."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from production_ml.core.errors import ConfigError
from production_ml.training.batch_pieces import batch_size, pieces_of, to_device

Pair = namedtuple("Pair", "pixels labels")


@given(size=st.integers(1, 40), piece_size=st.integers(1, 50))
def test_every_sample_is_in_one_piece_and_none_is_too_large(size, piece_size):
    pieces = list(pieces_of(torch.arange(size), piece_size))

    assert torch.cat([piece for piece, _ in pieces]).tolist() == list(range(size))
    assert all(len(piece) == count <= piece_size for piece, count in pieces)
    assert max(count for _, count in pieces) - min(count for _, count in pieces) <= 1


def test_tuples_dicts_and_texts_are_cut_along_and_what_counts_no_samples_is_not():
    batch = {
        "pair": Pair(torch.arange(4), torch.arange(4) * 10),
        "rows": [torch.arange(8).view(4, 2)],
        "texts": ["a", "b", "c", "d"],
        "scale": torch.tensor(2.0),
        "name": "whole",
    }

    (first, _), (second, _) = pieces_of(batch, 2)

    assert isinstance(first["pair"], Pair)
    assert (first["pair"].labels.tolist(), second["pair"].labels.tolist()) == ([0, 10], [20, 30])
    assert second["rows"][0].tolist() == [[4, 5], [6, 7]]
    assert (first["texts"], second["texts"]) == (["a", "b"], ["c", "d"])
    assert (first["scale"].item(), second["name"]) == (2.0, "whole")


def test_an_uncut_batch_is_the_batch_itself():
    batch = [torch.arange(3)]

    assert next(pieces_of(batch, None)) == (batch, 3)
    assert next(pieces_of(batch, 3))[0] is batch


def test_a_batch_without_samples_is_refused():
    with pytest.raises(ConfigError, match="no tensor whose first dimension counts samples"):
        batch_size({"name": "text", "scale": torch.tensor(1.0)})


def test_tensors_go_to_the_device_in_their_places():
    moved = to_device({"rows": (torch.arange(2), "text")}, torch.device("meta"))

    assert moved["rows"][0].device.type == "meta"
    assert moved["rows"][1] == "text"
