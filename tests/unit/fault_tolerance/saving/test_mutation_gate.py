"""Nothing that an optimizer changes is changed while it is copied, and what else changes it is noticed."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from production_ml.fault_tolerance.saving.mutation_gate import MutationGate, guarded_tensors, hooked
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging, TornSaveError, Transfer


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.zeros(1 << 17))
    parameter.grad = torch.ones_like(parameter)
    return torch.optim.SGD([parameter], lr=1.0, momentum=0.9)


@pytest.fixture
def transfer(optimizer) -> Transfer:
    """A copy of the parameter that nobody has made yet."""
    [parameter] = optimizer.param_groups[0]["params"]
    return Staging().begin(ShardPlanner(rank=0).plan({"w": parameter}), {id(parameter)})


def test_step_waits_until_the_copy_is_made(optimizer, transfer):
    [parameter] = optimizer.param_groups[0]["params"]
    gate = MutationGate()
    gate.guard()
    gate.close_for(transfer)
    training = threading.Thread(target=optimizer.step)
    training.start()
    assert not parameter.any()

    transfer.run()  # raises where step() did not wait

    training.join()
    assert parameter.all()
    assert gate.stall_seconds > 0


def test_after_the_copy_step_goes_on_at_once_and_so_does_the_next(optimizer, transfer):
    gate = MutationGate()
    gate.guard()
    gate.close_for(transfer)
    transfer.run()

    optimizer.step()
    optimizer.step()


def test_a_change_that_begins_while_the_copy_is_made_is_noticed_at_the_gate(optimizer, transfer):
    [parameter] = optimizer.param_groups[0]["params"]
    gate = MutationGate()
    gate.close_for(transfer)
    found: list[BaseException] = []

    def run() -> None:
        try:
            transfer.run()
        except TornSaveError as error:
            found.append(error)

    copying = threading.Thread(target=run)
    copying.start()
    with torch.no_grad():
        parameter.add_(1)
    gate.await_open()
    copying.join()

    assert len(found) == 1


def test_every_optimizer_of_the_process_is_held_back_once_and_let_go_again():
    before = len(_global_optimizer_pre_hooks)
    gate = MutationGate()
    gate.guard()
    gate.guard()
    assert len(_global_optimizer_pre_hooks) == before + 1

    gate.remove()
    assert len(_global_optimizer_pre_hooks) == before


def test_a_gate_that_is_forgotten_leaves_no_hook():
    before = len(_global_optimizer_pre_hooks)
    gate = MutationGate()
    gate.guard()
    del gate

    assert len(_global_optimizer_pre_hooks) == before


def test_what_an_optimizer_changes_is_its_parameters_and_its_state_and_no_others(optimizer):
    optimizer.step()
    [parameter] = optimizer.param_groups[0]["params"]
    momentum = optimizer.state[parameter]["momentum_buffer"]
    other = torch.ones(1)

    guarded = guarded_tensors([optimizer])

    assert {id(parameter), id(momentum)} <= guarded
    assert id(other) not in guarded
    assert id(parameter.grad) not in guarded


def test_a_fork_does_not_wait_for_a_copy_of_its_parent(optimizer, transfer):
    gate = MutationGate()
    gate.guard()
    gate.close_for(transfer)

    child = os.fork()
    if child == 0:
        gate.await_open()
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    transfer.run()


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an Optimizer by name, that has none of its parts but those of the one it wraps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_a_wrapper_without_hooks_is_seen_through_and_what_has_none_at_all_is_left_alone(optimizer):
    assert hooked(optimizer) is optimizer
    assert hooked(Wrapper(Wrapper(optimizer))) is optimizer
    assert hooked(Wrapper(None)) is None
    assert hooked(torch.optim.lr_scheduler.StepLR(optimizer, 1)) is None
