"""A full checkpoint is what any tool opens; where it cannot be, the checkpoint itself is none the worse."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.full_checkpoints import FullCheckpoints
from production_ml.fault_tolerance.saving.writer.client import Writer
from production_ml.testing.s3_servers import BUCKET


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
    refusal = FullCheckpoints(open_place("s3://bucket/run")).want(True, 1)

    assert "production-ml checkpoint export s3://" in str(refusal)


@pytest.mark.services
def test_in_an_object_store_an_epochs_end_is_an_ordinary_step(trained, moto, use_s3):
    use_s3(moto.url)
    with CheckpointManager(f"s3://{BUCKET}/full-checkpoints", save_every=2, save_best=False) as manager:
        due = [manager.save_if_due(model=trained[0], step=step, epoch_ended=step) for step in (1, 2, 3)]

    assert due == [False, True, False]


def test_an_object_store_refuses_full_checkpoints_when_the_manager_is_made():
    with pytest.raises(ConfigError, match=r"full_every.*object store"):
        CheckpointManager("s3://bucket/full-checkpoints", full_every=1)
    CheckpointManager("s3://bucket/full-checkpoints", full_every=0).close()


def test_full_checkpoints_are_switched_off_with_0(directory, trained):
    with CheckpointManager(directory.path, save_every=1000, full_every=0) as manager:
        assert not manager.save_if_due(model=trained[0], step=1, epoch_ended=1)

    assert not (directory.path / "full").exists()


def test_a_step_that_is_a_tensor_is_written_whole_too(directory, trained):
    with CheckpointManager(directory.path, save_best=False) as manager:
        manager.save(model=trained[0], step=torch.tensor(7), full=True)

    assert (directory.path / "full" / "step-00000007.safetensors").exists()


def lost(caplog) -> list[int]:
    """The steps whose full checkpoints the log says are not there."""
    told = [record for record in caplog.records if getattr(record, "event", None) == "checkpoint_full_failed"]
    return [record.fields["step"] for record in told]


@pytest.mark.parametrize("ending", ["save", "wait", "close"])
def test_a_save_that_failed_in_the_background_tells_that_its_full_checkpoint_is_lost(
    directory, trained, caplog, file_size_limit, ending
):
    manager = CheckpointManager(directory.path, save_best=False)
    manager.save(model=trained[0], step=0)  # has the memory, which the limit would refuse too
    manager.wait()
    with file_size_limit(64):
        manager.save(model=trained[0], step=1, full=True)
        with pytest.raises(CheckpointWriteError):
            {"save": lambda: manager.save(model=trained[0], step=2), "wait": manager.wait, "close": manager.close}[
                ending
            ]()
    assert lost(caplog) == [1]

    manager.save(model=trained[0], step=3, full=True)
    manager.close()

    assert lost(caplog) == [1]
    assert [path.name for path in (directory.path / "full").iterdir()] == ["step-00000003.safetensors"]


class HeldWriter(Writer):
    """Writes when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write(self, order, image, lock):
        assert self.may_write.wait(60)
        return super().write(order, image, lock)


@pytest.mark.parametrize("call", ["wait", "close", "save"])
def test_a_wait_that_was_interrupted_gives_up_no_full_checkpoint(directory, trained, caplog, interrupted, call):
    manager = CheckpointManager(directory.path, save_best=False)
    manager._saver._writer = writer = HeldWriter()
    manager.save(model=trained[0], step=1, full=True)
    calls = {"wait": manager.wait, "close": manager.close, "save": lambda: manager.save(model=trained[0], step=2)}

    assert interrupted(calls[call])
    writer.may_write.set()
    manager.close()

    assert lost(caplog) == []
    assert [path.name for path in (directory.path / "full").iterdir()] == ["step-00000001.safetensors"]


def test_a_save_that_is_refused_tells_that_its_full_checkpoint_is_lost(directory, caplog):
    with CheckpointManager(directory.path, save_best=False) as manager:
        with pytest.raises(CheckpointWriteError, match="meta"):
            manager.save(model=nn.Linear(2, 2, device="meta"), step=1, full=True)

        assert lost(caplog) == [1]
