"""Copies of a GPU's memory take their turn in its work. Run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance.saving.device_copies import DeviceCopies

pytestmark = pytest.mark.gpu
ELEMENTS = 1 << 26
"""Enough that a copy takes milliseconds, and what is given to the device after it would overtake it."""


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("These tests need a CUDA device; leave them out with: pytest -m 'not gpu'")
    return torch.device("cuda")


@pytest.fixture
def target() -> torch.Tensor:
    return torch.zeros(ELEMENTS, pin_memory=True)


def give_work(device: torch.device) -> None:
    """Keep the device busy for some milliseconds."""
    square = torch.randn(4096, 4096, device=device)
    for _ in range(8):
        square = square @ square


def test_a_copy_is_of_the_state_after_all_work_that_was_given_before_it(device, target):
    source = torch.zeros(ELEMENTS, device=device)
    give_work(device)
    source.fill_(1.0)
    copies = DeviceCopies()

    copies.make([(source, target)])
    copies.await_end()

    assert bool((target == 1.0).all())


def test_work_that_is_held_back_changes_nothing_that_is_copied(device, target):
    source = torch.ones(ELEMENTS, device=device)
    copies = DeviceCopies()

    copies.make([(source, target)])
    copies.hold_back()
    source.zero_()
    copies.await_end()

    assert bool((target == 1.0).all())
    assert bool((source == 0.0).all())


def test_memory_that_training_lets_go_of_is_not_used_anew_before_it_is_copied(device, target):
    source = torch.ones(ELEMENTS, device=device)
    copies = DeviceCopies()

    copies.make([(source, target)])
    del source
    torch.zeros(ELEMENTS, device=device)
    copies.await_end()

    assert bool((target == 1.0).all())
