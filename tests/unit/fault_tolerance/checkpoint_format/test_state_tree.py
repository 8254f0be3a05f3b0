"""Any nesting of plain values and tensors goes in and comes out the same; nothing else goes in."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree, tensor_names

KEYS = st.one_of(
    st.sampled_from(["a", "a/b", "", "$tensor", "$items", "1", "key"]), st.integers(), st.tuples(st.integers())
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
TREES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=12,
)


def round_trip(value):
    tensors: dict[str, torch.Tensor] = {}
    encoded = json.loads(json.dumps(encode_tree(value, "extra.x", tensors), allow_nan=False))
    assert sorted(tensor_names(encoded)) == sorted(tensors)
    return decode_tree(encoded, tensors)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_a_nesting_of_plain_values_comes_back_the_same(tree):
    found = round_trip(tree)

    assert found == tree
    assert repr(found) == repr(tree)  # tells 1 from True and from 1.0


def test_not_a_number_and_the_infinities_come_back():
    assert str(round_trip([float("nan"), float("inf"), -float("inf")])) == "[nan, inf, -inf]"


def test_names_that_lead_to_one_do_not_overwrite_each_other():
    value = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}

    found = round_trip(value)

    assert [int(tensor) for tensor in (found["a/b"], found["a"]["b"], found[1], found["1"])] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "array",
    [
        np.array(2.5),
        np.arange(6, dtype=">i4").reshape(2, 3).T,
        np.arange(4)[::-1],
        np.zeros((0, 2), dtype=bool),
        np.frombuffer(b"read-only", dtype=np.uint8),
    ],
    ids=["0-dim", "big-endian", "reversed", "empty", "read-only"],
)
def test_an_array_comes_back_as_an_array(array):
    found = round_trip({"array": array})["array"]

    assert isinstance(found, np.ndarray)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found, array)


def test_an_array_is_copied_for_it_may_change_before_it_is_written():
    array = np.zeros(3)
    tensors: dict[str, torch.Tensor] = {}
    encode_tree(array, "x", tensors)
    array += 1

    assert tensors["x"].tolist() == [0, 0, 0]


def test_numpy_scalars_come_back_as_numbers():
    assert round_trip([np.float32(0.5), np.int64(3), np.bool_(True), np.float64("inf")]) == [0.5, 3, True, float("inf")]


def test_the_states_of_random_generators_come_back():
    states = {
        "python": random.Random(1).getstate(),
        "numpy": np.random.default_rng(1).bit_generator.state,
        "torch": torch.Generator().manual_seed(1).get_state(),
    }

    found = round_trip(states)

    assert found["python"] == states["python"]
    assert found["numpy"] == states["numpy"]
    assert torch.equal(found["torch"], states["torch"])


@pytest.mark.parametrize(
    "odd",
    [
        object(),
        {1, 2},
        b"bytes",
        1j,
        np.array(["text"]),
        np.array([None]),
        np.datetime64("2026-01-01"),
        np.longdouble(1),
    ],
    ids=str,
)
def test_what_is_not_plain_is_refused_by_name(odd):
    with pytest.raises(CheckpointWriteError, match=r"extra\.x/deep/0"):
        round_trip({"deep": [odd]})


def test_tensors_as_keys_are_refused():
    with pytest.raises(CheckpointWriteError, match="tensors as keys"):
        round_trip({torch.tensor(1): 1})
