"""Saves follow on each other without tearing, and one for which there is no room is left out."""

from __future__ import annotations

import contextlib
import errno
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.ring import ImageRing
from production_ml.fault_tolerance.saving.commit import GivenUpError, give_up
from production_ml.fault_tolerance.saving.disk_pause import DiskPause
from production_ml.fault_tolerance.saving.draft import SaveInputs
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.save_in_flight import SaveInFlight
from production_ml.fault_tolerance.saving.saver import OnCommit, Saver
from production_ml.fault_tolerance.saving.writer.client import Writer
from production_ml.testing.clock import FakeClock


def committed(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_steps_that_follow_at_once_on_saves_tear_none_of_them(root, caplog):
    model = nn.Linear(700, 500)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
        parameter.grad = torch.full_like(parameter, -1.0)
    with CheckpointManager(root, keep_last_n=30, save_best=False) as manager:
        for step in range(8):
            manager.save(model=model, optimizer=optimizer, step=step)
            optimizer.step()

        for step in reversed(range(8)):
            assert manager.load_latest(model, optimizer)["step"] == step
            assert all(bool((parameter == step).all()) for parameter in model.parameters())
            (root / f"step-{step:08d}" / "manifest.json").unlink()
    assert "checkpoint_save_failed" not in [getattr(record, "event", "") for record in caplog.records]


def test_buffers_and_extras_are_those_of_the_call_though_the_next_forward_changes_them(root):
    model = nn.BatchNorm1d(100_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averages = {"mean": torch.ones(100_000)}
    was = model.running_mean.clone()
    with CheckpointManager(root) as manager:
        manager.save(model=model, optimizer=optimizer, step=1, averages=averages)
        averages["mean"].zero_()
        model(torch.randn(2, 100_000))
        assert not torch.equal(model.running_mean, was)

        state = manager.load_latest(model, optimizer)

    assert torch.equal(model.running_mean, was)
    assert torch.equal(state["averages"]["mean"], torch.ones(100_000))


def test_a_save_that_would_mix_two_moments_is_dropped_and_told_of_and_the_next_is_copied_at_once(root, caplog):
    model = nn.Linear(4000, 2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def change(value: float) -> None:
        """As a script does that sets weights itself, and not by optimizer.step()."""
        with torch.no_grad():
            model.weight.fill_(value)

    with CheckpointManager(root) as manager:
        manager.save(model=model, optimizer=optimizer, step=1)
        change(1.0)
        manager.save(model=model, optimizer=optimizer, step=2)
        change(2.0)
        manager.save(model=model, optimizer=optimizer, step=3)

    assert committed(root) == [2, 3]
    [problem] = [record for record in caplog.records if getattr(record, "event", "") == "checkpoint_save_failed"]
    assert problem.fields["step"] == 1
    assert "'model.weight' changed in place between save() and the next optimizer.step()" in problem.fields["problem"]
    for step in (3, 2):
        assert CheckpointManager(root).load_latest(model, optimizer)["step"] == step
        assert (model.weight == step - 1).all()
        (root / f"step-{step:08d}" / "manifest.json").unlink()


def test_a_closed_manager_no_longer_holds_the_optimizer_back(root, trained):
    model, optimizer = trained
    with CheckpointManager(root) as manager:
        manager.save(model=model, optimizer=optimizer, step=1)
        assert _global_optimizer_pre_hooks

    assert not _global_optimizer_pre_hooks


def test_training_that_goes_on_without_a_closed_manager_starts_no_writer_for_it(root, trained):
    model, optimizer = trained
    with CheckpointManager(root) as manager:
        manager.load_latest(model, optimizer)
        manager.load_latest(model, optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1

    assert not optimizer._optimizer_step_post_hooks


def test_managers_that_come_and_go_leave_no_descriptor_behind(root, trained):
    def save_and_load(step: int) -> None:
        with CheckpointManager(root) as manager:
            manager.save(model=trained[0], optimizer=trained[1], step=step)
        CheckpointManager(root).load_latest(*trained)

    save_and_load(1)
    gc.collect()
    before = set(Path("/proc/self/fd").iterdir())
    save_and_load(2)
    gc.collect()

    assert set(Path("/proc/self/fd").iterdir()) <= before


@pytest.fixture
def saver_with(directory) -> Iterator[Callable[..., Saver]]:
    """A saver whose writer and disk are as a test wants them."""
    with contextlib.ExitStack() as at_end:

        def make(
            *,
            asynchronous: bool,
            writer: Writer | None = None,
            disk_pause: DiskPause | None = None,
            on_commit: OnCommit = lambda *_: None,
        ) -> Saver:
            saver = Saver(directory, asynchronous=asynchronous, on_commit=on_commit, disk_pause=disk_pause)
            saver._writer = writer or saver._writer
            at_end.callback(saver.close)
            return saver

        yield make


def inputs_of(step: int) -> SaveInputs:
    return SaveInputs(nn.Linear(2, 2), None, step, {"loss": 0.5}, {})


class RefusedWriter(Writer):
    """Another rank, or this one's disk, refuses what it writes."""

    def __init__(self, error: CheckpointWriteError) -> None:
        super().__init__()
        self.error: CheckpointWriteError | None = error

    def write(self, order, image, lock):
        if self.error is None:
            return super().write(order, image, lock)
        give_up(order, self.error)
        error, self.error = self.error, None
        raise error


def disk_full() -> CheckpointWriteError:
    return write_error("The checkpoint could not be written", OSError(errno.ENOSPC, "No space left on device"))


def events_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records if hasattr(record, "event")]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_for_which_there_is_no_room_is_left_out_and_nothing_is_raised(
    directory, saver_with, asynchronous, tmp_path, caplog
):
    pause = DiskPause(tmp_path, make_room=lambda step: [], reserve_bytes=1 << 60)
    saver = saver_with(asynchronous=asynchronous, disk_pause=pause)

    assert saver.save(inputs_of(1)) is None
    saver.wait()

    assert not directory.path.exists()
    assert events_in(caplog) == ["checkpoint_paused"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_met_a_full_disk_raises_nowhere_and_the_next_one_works(
    directory, saver_with, asynchronous, tmp_path, caplog
):
    clock = FakeClock()
    pause = DiskPause(tmp_path, make_room=lambda step: [], reserve_bytes=0, clock=clock)
    saver = saver_with(asynchronous=asynchronous, writer=RefusedWriter(disk_full()), disk_pause=pause)

    saver.save(inputs_of(1))
    saver.wait()
    assert saver.save(inputs_of(2)) is None  # it waits before it tries again
    clock.advance(30)
    assert saver.save(inputs_of(3)) == {"loss": 0.5}
    saver.wait()

    assert directory.steps() == [3]
    assert [event for event in events_in(caplog) if event != "checkpoint_save_failed"] == [
        "checkpoint_paused",
        "checkpoint_resumed",
    ]


class NoRoomAtFirst(CheckpointDirectory):
    """A disk that has no block left for a new directory, until something is removed."""

    has_room = False

    def begin(self, step, save_id):
        if not self.has_room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().begin(step, save_id)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_whose_directory_found_no_block_is_made_as_soon_as_something_was_removed(asynchronous, tmp_path):
    directory = NoRoomAtFirst(tmp_path / "checkpoints")
    removed = []

    def make_room(step: int) -> list[int]:
        directory.has_room = True
        removed.append(step)
        return [step]

    pause = DiskPause(tmp_path, make_room=make_room, reserve_bytes=0)
    saver = Saver(directory, asynchronous=asynchronous, on_commit=lambda *_: None, disk_pause=pause)

    saved = saver.save(inputs_of(3))
    saver.close()

    assert saved == {"loss": 0.5}
    assert (directory.steps(), removed, pause.is_paused) == ([3], [3], False)


def test_the_save_after_one_that_met_a_full_disk_raises_nothing_either(directory, saver_with, tmp_path):
    pause = DiskPause(tmp_path, make_room=lambda step: [], reserve_bytes=0)
    saver = saver_with(asynchronous=True, writer=RefusedWriter(disk_full()), disk_pause=pause)

    saver.save(inputs_of(1))

    assert saver.save(inputs_of(2)) is None


def test_a_pause_ends_with_the_commit_whatever_becomes_of_what_follows_it(saver_with, tmp_path):
    def fail(*_: object) -> None:
        raise RuntimeError("a policy of the user's own")

    clock = FakeClock()
    pause = DiskPause(tmp_path, make_room=lambda step: [], reserve_bytes=0, clock=clock)
    writer = RefusedWriter(disk_full())
    saver = saver_with(asynchronous=True, writer=writer, disk_pause=pause, on_commit=fail)
    saver.save(inputs_of(1))
    saver.wait()
    assert pause.is_paused

    clock.advance(30)
    saver.save(inputs_of(2))
    saver.wait()

    assert not pause.is_paused


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_rank_0_gave_up_is_a_warning_to_the_others_that_wait_for_it(saver_with, asynchronous, caplog):
    given_up = GivenUpError("The checkpoint of step 1 was given up by rank 0.")
    saver = saver_with(asynchronous=asynchronous, writer=RefusedWriter(given_up))

    saver.save(inputs_of(1))
    saver.wait()

    assert "given up by rank 0" in caplog.text


def test_what_memory_did_not_take_is_no_reason_to_lose_a_checkpoint_on_disk(directory, saver_with, caplog):
    killed = CheckpointWriteError("The checkpoint of step 1 was not written: the process that writes was killed.")
    saver = saver_with(asynchronous=True, writer=RefusedWriter(killed))

    saver.save(inputs_of(1), on_disk=False)
    saver.save(inputs_of(2))
    saver.wait()

    assert directory.steps() == [2]
    assert events_in(caplog)[:1] == ["checkpoint_save_failed"]


class HeldStart(Writer):
    """Its process starts when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.has_begun = threading.Event()
        self.may_start = threading.Event()

    def prepare(self, image):
        self.threads.append(threading.current_thread().name)
        self.has_begun.set()
        assert self.may_start.wait(60)
        super().prepare(image)


def test_a_save_leaves_the_writer_to_the_thread_that_gets_it_ready_also_after_an_interrupted_wait(
    saver_with, interrupted
):
    class Ring(ImageRing):
        def settle(self, writer, *, call):
            asked.append(call)
            super().settle(writer, call=call)

    asked: list[str] = []
    writer = HeldStart()
    saver = saver_with(asynchronous=True, writer=writer)
    saver._ring = Ring(0)
    saver._prepare(inputs_of(1))
    assert writer.has_begun.wait(60)

    assert interrupted(lambda: saver.save(inputs_of(1)))
    assert interrupted(lambda: saver.save(inputs_of(1)))
    assert asked == []
    writer.may_start.set()
    saver.save(inputs_of(2))
    saver.wait()

    assert writer.threads == ["checkpoint-prepare", "checkpoint-step-2"]


def test_an_interrupted_close_costs_no_checkpoint_and_the_next_one_closes(directory, saver_with, interrupted):
    writer = HeldStart()
    saver = saver_with(asynchronous=True, writer=writer)
    saver.save(inputs_of(1))

    assert interrupted(saver.close)
    writer.may_start.set()
    saver.close()

    assert directory.steps() == [1]


@pytest.mark.parametrize(("owner", "method"), [(Saver, "_begin"), (SaveInFlight, "start")])
def test_a_save_that_is_interrupted_before_it_is_under_way_holds_no_optimizer_back_and_leaves_no_claim(
    directory, saver_with, monkeypatch, owner, method
):
    model = nn.Linear(400, 400)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = saver_with(asynchronous=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # The moments lie microseconds apart: a signal cannot be timed to them.
        patch.setattr(owner, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            saver.save(SaveInputs(model, optimizer, 1, {}, {}))
    optimizer.step()
    saver.save(SaveInputs(model, optimizer, 2, {}, {}))
    saver.wait()

    assert [path.name for path in directory.path.iterdir()] == ["step-00000002"]


def test_with_copies_that_may_not_wait_even_a_change_through_data_comes_too_late(root):
    model = nn.Linear(4000, 2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    was = model.weight.detach().clone()
    with CheckpointManager(root, defer_copies=False) as manager:
        manager.save(model=model, optimizer=optimizer, step=1)
        model.weight.data.zero_()

        manager.load_latest(model, optimizer)

    assert torch.equal(model.weight, was)


def test_what_cannot_be_planned_raises_nowhere_in_the_training_step(saver_with, trained):
    model, optimizer = trained
    saver = saver_with(asynchronous=True)
    saver.expect_training(model, optimizer)
    model.register_buffer("odd", torch.ones(2).to_sparse())
    model._save_to_state_dict = None  # not callable: no CheckpointWriteError, but a TypeError

    optimizer.step()
