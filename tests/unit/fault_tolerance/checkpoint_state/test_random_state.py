"""A resumed rank draws the numbers that were next, and a new one draws others than all the rest, always the same."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree
from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState


@pytest.fixture(autouse=True)
def _leaves_no_trace():
    generator, state = np.random.mtrand.get_bit_generator(), RandomState().state_dict()
    yield
    np.random.mtrand.set_bit_generator(generator)
    RandomState().load_state_dict(state)


def draws() -> list[float]:
    """One of each kind; normal ones too, of which Python and NumPy make two at a time and keep the second."""
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.randn(()).item()]


def stored(state):
    """As it comes out of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    encoded = json.loads(json.dumps(encode_tree(state, "x", tensors), allow_nan=False))
    return decode_tree(encoded, {name: tensor.clone() for name, tensor in tensors.items()})


def test_all_generators_go_on_as_if_nothing_had_happened():
    draws()
    state = stored(RandomState().state_dict())
    expected = [draws() for _ in range(3)]

    RandomState().load_state_dict(state)

    assert [draws() for _ in range(3)] == expected


def test_a_saved_state_does_not_change_while_numbers_are_drawn():
    state = RandomState().state_dict()
    expected = draws()
    draws()

    RandomState().load_state_dict(state)

    assert draws() == expected


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox])
def test_numpys_global_generator_comes_back_as_the_kind_that_it_was(kind):
    np.random.mtrand.set_bit_generator(kind(5))
    state = stored(RandomState().state_dict())
    expected = draws()
    np.random.mtrand.set_bit_generator(np.random.MT19937(0))

    RandomState().load_state_dict(state)

    assert draws() == expected


def test_a_generator_that_numpy_does_not_know_is_refused_by_name():
    state = RandomState().state_dict()
    state["numpy"]["bit_generator"] = "Generator"

    with pytest.raises(CheckpointMismatchError, match="saved as a Generator"):
        RandomState().load_state_dict(state)


def test_cuda_state_is_left_out_where_there_is_no_such_device():
    state = RandomState().state_dict()

    RandomState().load_state_dict({**state, "cuda": [torch.zeros(16, dtype=torch.uint8)] * 64})


def loaded_as(states, rank: int, world_size: int) -> list[float]:
    RandomState().load_rank_states(states, rank=rank, world_size=world_size)
    return draws()


def test_ranks_that_were_there_go_on_and_new_ones_draw_their_own_numbers_each_time_the_same(caplog):
    caplog.set_level("INFO")
    states, expected = [], []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        states.append(stored(RandomState().state_dict()))
        expected.append(draws())

    four = [loaded_as(states, rank, 4) for rank in range(4)]
    again = [loaded_as(states, rank, 4) for rank in range(4)]

    assert four[:2] == expected
    assert four == again
    assert len({str(numbers) for numbers in four}) == 4
    derived = [record.fields["rank"] for record in caplog.records if record.event == "random_state_derived"]
    assert derived == [2, 3, 2, 3]


def test_other_states_of_rank_0_give_new_ranks_other_numbers():
    torch.manual_seed(1)
    one = loaded_as([RandomState().state_dict()], 1, 2)
    torch.manual_seed(2)
    other = loaded_as([RandomState().state_dict()], 1, 2)

    assert one != other
