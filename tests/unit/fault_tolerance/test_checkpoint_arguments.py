"""What is not what its name says is refused by that name, on the spot, and training may go on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.retention import KeepEvery


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep_last_n": 0},
        {"best_mode": "least"},
        {"checkpoint_dir": None},
        {"verify": "half"},
        {"save_every": 0},
        {"full_every": -1},
        {"best_metric": None},
        {"best_metric": ""},
        {"keep": None},
        {"keep": 5},
        {"keep": ["a"]},
        {"keep": [KeepEvery]},
        {"save_best": "no"},
        {"asynchronous": "no"},
        {"defer_copies": "no"},
        {"memory_copies": -1},
        {"memory_copies": True},
        {"memory_copies": "2"},
        {"memory_every": 5},
        {"memory_every": 0, "memory_copies": 2},
        {"checkpoint_dir": ""},
        {"checkpoint_dir": "http://host/run"},
        {"checkpoint_dir": "checkpoints/step-00000300"},
    ],
    ids=lambda arguments: "-".join(f"{name}={value}" for name, value in arguments.items()),
)
def test_arguments_that_cannot_work_are_refused_at_once(directory, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        CheckpointManager(**{"checkpoint_dir": directory.path, **arguments})


@pytest.mark.parametrize(("arguments", "message"), [({"step": -1}, "step"), ({"step": 1, "metrics": {"a": "b"}}, "a")])
def test_a_step_or_metric_that_is_no_number_is_refused_and_training_may_go_on(directory, trained, arguments, message):
    manager = CheckpointManager(directory.path)

    with pytest.raises(ConfigError, match=message):
        manager.save(model=trained[0], **arguments)

    manager.save(model=trained[0], step=2)
    manager.close()
    assert directory.steps() == [2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": None},
        {"model": {"weight": torch.ones(1)}},
        {"optimizer": nn.Linear(1, 1)},
        {"optimizer": {"lr": 0.1}},
        {"metrics": 3},
        {"metrics": [0.5]},
        {"metrics": torch.ones(2)},
        {"step": True},
        {"step": None},
        {"full": "yes"},
    ],
    ids=lambda arguments: "-".join(f"{name}={type(value).__name__}" for name, value in arguments.items()),
)
def test_what_is_not_what_its_name_says_is_refused_by_that_name_and_training_may_go_on(directory, trained, arguments):
    model, optimizer = trained
    with CheckpointManager(directory.path) as manager:
        with pytest.raises(ConfigError, match=f"^{next(iter(arguments))} = "):
            manager.save(**{"model": model, "optimizer": optimizer, "step": 1, **arguments})

        manager.save(model=model, optimizer=optimizer, step=2)

    assert directory.steps() == [2]


def test_a_scheduler_in_the_place_of_the_optimizer_is_told_its_own(directory, trained):
    model, optimizer = trained
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)

    with CheckpointManager(directory.path) as manager, pytest.raises(ConfigError, match="scheduler=scheduler"):
        manager.save(model=model, optimizer=scheduler, step=1)


@pytest.mark.parametrize("arguments", [{"step": None}, {"step": True}, {"epoch_ended": True}, {"epoch_ended": "3"}])
def test_progress_that_cannot_be_counted_with_is_refused_before_anything_is_due(directory, trained, arguments):
    manager = CheckpointManager(directory.path, save_every=10)

    with pytest.raises(ConfigError, match=f"^{next(iter(arguments))} = "):
        manager.save_if_due(**{"model": trained[0], "step": 1, **arguments})


def test_loading_refuses_what_is_no_model_or_optimizer_also_where_there_is_nothing_to_load(directory, trained):
    model, optimizer = trained
    manager = CheckpointManager(directory.path)

    with pytest.raises(ConfigError, match=r"^model = 'NoneType'"):
        manager.load_latest(None)
    with pytest.raises(ConfigError, match=r"^optimizer = 'dict'"):
        manager.load_latest(model, optimizer.state_dict())


def test_a_misspelt_optimizer_is_no_extra(directory, trained):
    model, optimizer = trained
    manager = CheckpointManager(directory.path)

    with pytest.raises(ConfigError, match=r"(?s)^optimzer = 'AdamW'.*optimizer=optimzer"):
        manager.save(model=model, optimzer=optimizer, step=1)

    assert directory.steps() == []


def test_another_model_s_optimizer_may_be_an_extra(directory, trained, fresh):
    _, of_another = fresh(1)
    with CheckpointManager(directory.path) as manager:
        manager.save(model=trained[0], critic_optimizer=of_another, step=1)

    assert directory.steps() == [1]
