"""A save under way holds the values of its moment, and what comes of it is never lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.saving.commit import carry_out
from production_ml.fault_tolerance.saving.draft import SaveInputs, agree, draft_save
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.fault_tolerance.saving.save_in_flight import SaveInFlight
from production_ml.fault_tolerance.saving.staging import StagingMemory


def ignore(manifest: Manifest) -> None:
    """Nothing to do after the commit."""


def test_training_goes_on_while_the_save_is_under_way_and_nothing_tears(directory, order_of):
    model = nn.Linear(4, 4)
    was = model.weight.detach().clone()
    draft = draft_save(directory, StagingMemory(), SaveInputs(model, None, 1, {}, {}), rank=0, world_size=2)
    # Alone in this process there is nobody to agree with; rank 1 comes late, so the save stays open until it does.
    order = draft.order
    committed: list[int] = []
    flight = SaveInFlight(order, lock=draft.lock, on_commit=lambda manifest: committed.append(manifest.step))
    flight.start()

    with torch.no_grad():
        model.weight.zero_()
    assert committed == []
    assert directory.steps() == []

    late = order_of(rank=1, world_size=2, tensors={}, save_id=order.save_id)
    carry_out(late, Patience())
    flight.join()

    assert committed == [1]
    assert flight.error is None
    shard = directory.committed(1) / "rank-00000.safetensors"
    assert was.numpy().tobytes() in shard.read_bytes()


def test_an_error_is_kept_and_told_to_the_log(directory, order_of, caplog):
    flight = SaveInFlight(order_of(4), lock=None, on_commit=ignore)  # nobody made its directory
    flight.start()
    flight.join()

    assert isinstance(flight.error, CheckpointWriteError)
    [record] = caplog.records
    assert (record.event, record.fields["step"]) == ("checkpoint_save_failed", 4)
    assert "No such file" in record.fields["problem"]


def test_an_error_that_nobody_foresaw_is_kept_too(directory, order_of):
    lock = directory.begin(1, "00ff")
    flight = SaveInFlight(replace(order_of(1), values=object()), lock=lock, on_commit=ignore)
    flight.run()

    assert flight.error is not None
    assert isinstance(flight.error.__cause__, TypeError)
    assert directory.steps() == []


def test_a_committed_checkpoint_is_not_called_failed_for_what_fails_after_it(directory, order_of, caplog):
    def fail(manifest: Manifest) -> None:
        raise OSError(5, "Input/output error")

    lock = directory.begin(1, "00ff")
    flight = SaveInFlight(order_of(1), lock=lock, on_commit=fail)
    flight.run()

    assert flight.error is None
    assert directory.steps() == [1]
    [record] = caplog.records
    assert "Step 1 is committed" in record.message


def test_a_script_that_failed_does_not_wait_long_for_ranks_that_are_gone(directory, order_of):
    lock = directory.begin(1, "00ff")
    flight = SaveInFlight(order_of(1, world_size=2), lock=lock, on_commit=ignore)
    flight.start()
    flight.leave_soon(within_seconds=0.0)
    flight.join()

    assert isinstance(flight.error, CheckpointWriteError)


def test_the_lock_is_let_go_however_the_save_ends(directory, order_of):
    for step in (1, 2):
        lock = directory.begin(step, "00ff")
        if step == 2:
            (directory.incomplete(2, "00ff") / "rank-00000.safetensors").mkdir()
        SaveInFlight(order_of(step), lock=lock, on_commit=ignore).run()

        with pytest.raises(OSError, match="Bad file descriptor"):
            lock.release()


def test_a_draft_alone_is_agreed_at_once(directory):
    draft = draft_save(directory, StagingMemory(), SaveInputs(nn.Linear(1, 1), None, 1, {}, {}), rank=0, world_size=1)

    assert agree(draft, None) == draft.order
    draft.abandon()
