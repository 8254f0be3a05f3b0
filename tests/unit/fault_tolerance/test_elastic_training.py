"""The composed loop resumes where it left off, learns the same in pieces, and ends for the reason it gives."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance import CheckpointManager, ElasticTraining
from production_ml.testing.clock import FakeClock
from production_ml.training.early_stopping import EarlyStopping
from production_ml.training.time_limit import TimeLimit

SAMPLES = TensorDataset(torch.randn(20, 3, generator=torch.Generator().manual_seed(5)), torch.arange(20.0))


def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]).squeeze(1) - batch[1]).square().mean()


@pytest.fixture
def training_in(tmp_path):
    """A training whose checkpoints are in a directory of that name."""
    managers = []

    def make(name: str, *, dropout: float = 0.5, **options) -> tuple[ElasticTraining, nn.Module]:
        torch.manual_seed(1)
        # What is dropped out has to come again after a resume, too.
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        managers.append(CheckpointManager(tmp_path / name, save_every=2, save_best=False))
        facts = {"model": model, "optimizer": optimizer, "dataset": SAMPLES, "global_batch_size": 6, **options}
        return ElasticTraining(checkpoints=managers[-1], **facts), model

    yield make
    for manager in managers:
        manager.close()


def test_a_resumed_training_ends_with_the_weights_of_one_that_went_through(training_in):
    through, expected = training_in("through")
    through.run(loss_fn, max_steps=9)
    first, _ = training_in("resumed")
    first.run(loss_fn, max_steps=3)

    second, resumed = training_in("resumed")
    result = second.run(loss_fn, max_steps=9)

    assert (result.resumed_from_step, result.steps, result.epochs, result.reason) == (3, 9, 2, "max_steps")
    assert torch.equal(resumed[0].weight, expected[0].weight)


def test_pieces_learn_what_a_whole_batch_learns(training_in):
    whole, expected = training_in("whole", dropout=0.0)
    whole.run(loss_fn, max_epochs=2)

    pieces, found = training_in("pieces", micro_batch_size=4, dropout=0.0)
    pieces.run(loss_fn, max_epochs=2)

    torch.testing.assert_close(found[0].weight, expected[0].weight, rtol=1e-5, atol=1e-6)


def test_the_end_of_the_last_epoch_ends_training_and_another_run_makes_no_step(training_in):
    first, _ = training_in("run")
    again, _ = training_in("run")

    assert (first.run(loss_fn, max_epochs=1).steps, first.run(loss_fn, max_epochs=1).steps) == (4, 4)
    result = again.run(loss_fn, max_epochs=1)
    assert (result.steps, result.epochs, result.reason, result.resumed_from_step) == (4, 1, "max_epochs", 4)


def test_training_ends_when_evaluations_no_longer_improve(training_in):
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5])
    options = {"evaluate": lambda model: {"validation/loss": next(losses)}, "evaluate_every": 1}

    training, _ = training_in("run", early_stopping=EarlyStopping(patience=2), **options)
    result = training.run(loss_fn, max_steps=100)

    assert (result.steps, result.reason) == (4, "early_stopping")


def test_training_ends_in_time(training_in):
    clock = FakeClock()
    limit = TimeLimit(timedelta(seconds=10), clock=clock, environ={})

    def slow_loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        clock.advance(4)
        return loss_fn(model, batch)

    training, _ = training_in("run", time_limit=limit)
    result = training.run(slow_loss, max_steps=100)

    assert (result.steps, result.reason) == (3, "time_limit")


def test_a_sharded_or_wrapped_model_is_not_needed_alone_but_no_other_strategy_is_taken_silently(training_in):
    with pytest.raises(ConfigError, match="is not known"):
        training_in("run", strategy="magic")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"evaluate_every": 5}, "evaluate_every"),
        ({"early_stopping": EarlyStopping(1)}, "early_stopping"),
        ({"global_batch_size": 0}, "global_batch_size"),
    ],
)
def test_arguments_that_cannot_work_are_named(training_in, options, field):
    with pytest.raises(ConfigError) as caught:
        training_in("run", **options)

    assert caught.value.field == field


def test_an_end_and_a_loss_are_asked_for(training_in):
    training, _ = training_in("run")

    with pytest.raises(ConfigError, match="training would never end"):
        training.run(loss_fn)
    with pytest.raises(ConfigError, match="gives no loss"):
        training.run(lambda model, batch: {"accuracy": 1.0}, max_steps=1)
