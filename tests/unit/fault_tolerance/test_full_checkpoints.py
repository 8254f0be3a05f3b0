"""A full checkpoint is what any tool opens; where it cannot be, the checkpoint itself is none the worse."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.full_checkpoints import FullCheckpoints


def test_weights_that_were_saved_whole_are_opened_by_another_tool(directory, trained, fresh):
    model, optimizer = trained
    with CheckpointManager(directory.path) as manager:
        manager.save(model=model, optimizer=optimizer, step=7, metrics={"loss": 1.0}, full=True)

    other, _ = fresh(seed=1)
    other.load_state_dict(load_file(directory.path / "full" / "step-00000007.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_an_epoch_that_ends_makes_a_full_checkpoint_whatever_the_schedule_says(directory, trained):
    model, optimizer = trained
    with CheckpointManager(directory.path, save_every=1000, full_every=2) as manager:
        due = [
            manager.save_if_due(
                model=model, optimizer=optimizer, step=10 * epoch, metrics={"loss": 1.0}, epoch_ended=epoch
            )
            for epoch in (1, 2, 3, 4)
        ]

    assert due == [False, True, False, True]
    written = sorted(path.name for path in (directory.path / "full").iterdir())
    assert written == ["step-00000020.safetensors", "step-00000040.safetensors"]


def test_a_full_checkpoint_that_cannot_be_written_is_told_and_the_save_stands(directory, trained, caplog):
    model, optimizer = trained
    directory.path.mkdir()
    (directory.path / "full").write_text("in the way")
    with CheckpointManager(directory.path) as manager:
        manager.save(model=model, optimizer=optimizer, step=7, metrics={"loss": 1.0}, full=True)

    assert directory.steps() == [7]
    assert "checkpoint_full_failed" in [getattr(record, "event", None) for record in caplog.records]


def test_an_object_store_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="production-ml checkpoint export memory://"):
        FullCheckpoints(open_place("memory://bucket/run")).want(1)
