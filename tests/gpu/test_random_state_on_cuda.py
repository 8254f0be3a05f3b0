"""The generators of CUDA devices go on from a saved state. Run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance import RandomState

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.fail("These tests need a CUDA device; leave them out with: pytest -m 'not gpu'")


def draws() -> list[list[float]]:
    devices = range(torch.cuda.device_count())
    return [torch.rand(3, device=f"cuda:{device}").tolist() for device in devices]


def test_every_devices_generator_goes_on_as_if_nothing_had_happened():
    draws()
    state = RandomState().state_dict()
    expected = draws()

    RandomState().load_state_dict(state)

    assert len(state["cuda"]) == torch.cuda.device_count()
    assert draws() == expected


def test_a_new_rank_draws_other_numbers_on_its_device_than_rank_0():
    torch.cuda.manual_seed_all(1)
    states = [RandomState().state_dict()]
    RandomState().load_rank_states(states, rank=0, world_size=2)
    first = draws()

    RandomState().load_rank_states(states, rank=1, world_size=2)

    assert draws() != first
