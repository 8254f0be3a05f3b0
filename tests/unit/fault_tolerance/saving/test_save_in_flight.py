"""A save under way holds the values of its moment, and what comes of it is never lost."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock, is_held
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.saving.commit import give_up
from production_ml.fault_tolerance.saving.disk_pause import DiskPause, MakeRoom
from production_ml.fault_tolerance.saving.draft import SaveDraft
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.save_in_flight import Committed, SaveInFlight
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging, Transfer
from production_ml.fault_tolerance.saving.writer.client import Writer


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def ignore(committed: Committed) -> None:
    """Nothing to do after the commit."""


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


@pytest.fixture
def flight_of(directory, share_of, writer) -> Callable[..., SaveInFlight]:
    """A save that all ranks have agreed to; its copies are made."""

    def make(
        step: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
        on_commit: Callable[[Committed], None] = ignore,
        transfer: Transfer | None = None,
        values: object = None,
        writer: Writer = writer,
        disk_pause: DiskPause | None = None,
    ) -> SaveInFlight:
        share = share_of(step, rank=rank, world_size=world_size)
        order = share.order if values is None else replace(share.order, values=values)
        lock = directory.begin(step, "00ff") if rank == 0 else None
        copied = transfer or Staging().begin(ShardPlanner(rank=0).plan({}), frozenset())
        return SaveInFlight(SaveDraft(order, copied, lock, ""), share.image, writer, on_commit, disk_pause)

    return make


class WriterOnFullDisk(Writer):
    """Finds the disk full so many times before it writes."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def write(self, order, image, lock):
        if self.times == 0:
            return super().write(order, image, lock)
        self.times -= 1
        give_up(order, OSError(errno.ENOSPC, "No space left on device"))
        raise write_error("The checkpoint could not be written", OSError(errno.ENOSPC, "No space left on device"))


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], Writer]]:
    with contextlib.ExitStack() as at_end:

        def make(times: int) -> Writer:
            writer = WriterOnFullDisk(times)
            at_end.callback(writer.close)
            return writer

        yield make


def pause_of(directory: CheckpointDirectory, make_room: MakeRoom) -> DiskPause:
    directory.path.mkdir()
    return DiskPause(directory.path, make_room=make_room, reserve_bytes=0)


def torn_transfer() -> Transfer:
    tensor = torch.ones(1 << 17)
    transfer = Staging().begin(ShardPlanner(rank=0).plan({"x": tensor}), {id(tensor)})
    tensor.zero_()
    return transfer


def test_what_follows_a_commit_is_told_its_step_and_size(directory, flight_of):
    committed: list[Committed] = []
    flight = flight_of(on_commit=committed.append)
    flight.start()
    flight.join()

    assert flight.error is None
    assert committed == [Committed(1, directory.manifest(1).size_bytes)]


def test_the_save_stays_open_until_the_last_rank_has_written(directory, share_of, flight_of):
    committed: list[Committed] = []
    flight = flight_of(world_size=2, on_commit=committed.append)
    flight.start()
    assert committed == []
    assert directory.steps() == []

    share_of(rank=1, world_size=2, tensors={}).carry_out()
    flight.join()

    assert [found.step for found in committed] == [1]


def test_an_error_is_kept_and_told_to_the_log(directory, flight_of, caplog):
    flight = flight_of(4)
    directory.abandon(directory.incomplete(4, "00ff"))
    flight.start()
    flight.join()

    assert isinstance(flight.error, CheckpointWriteError)
    [record] = caplog.records
    assert (record.event, record.fields["step"]) == ("checkpoint_save_failed", 4)
    assert "No such file" in record.fields["problem"]


def test_an_error_that_nobody_foresaw_is_kept_too_and_leaves_nothing(directory, flight_of):
    flight = flight_of(values=object())
    flight.run()

    assert flight.error is not None
    assert isinstance(flight.error.__cause__, TypeError)
    assert names_in(directory.path) == []


def test_a_torn_copy_is_dropped_and_leaves_nothing(directory, flight_of, caplog):
    flight = flight_of(transfer=torn_transfer())
    flight.run()

    assert "'x' changed in place" in str(flight.error)
    assert [record.event for record in caplog.records] == ["checkpoint_save_failed"]
    assert names_in(directory.path) == []


def test_a_torn_copy_of_one_rank_is_told_to_rank_0(share_of, directory, flight_of):
    lock = directory.begin(1, "00ff")
    flight_of(rank=1, world_size=2, transfer=torn_transfer()).run()

    with pytest.raises(CheckpointWriteError, match="Rank 1 could not write its shard: tensor 'x' changed in place"):
        share_of(world_size=2).carry_out()
    lock.release()


def test_a_committed_checkpoint_is_not_called_failed_for_what_fails_after_it(directory, flight_of, caplog):
    def fail(committed: Committed) -> None:
        raise OSError(5, "Input/output error")

    flight = flight_of(on_commit=fail)
    flight.run()

    assert flight.error is None
    assert directory.steps() == [1]
    [record] = caplog.records
    assert "Step 1 is committed" in record.message


def test_a_script_that_failed_does_not_wait_long_for_ranks_that_are_gone(flight_of):
    flight = flight_of(world_size=2)
    # The copies may still be under way when the script fails: it must not be forgotten until they are made.
    flight.leave_soon(within_seconds=0.0)
    flight.start()
    flight.join()

    assert "rank 1 did not write its shard in time" in str(flight.error)


def test_a_script_that_failed_once_waits_as_long_as_ever_in_a_later_save(directory, share_of, flight_of):
    flight = flight_of(world_size=2)
    flight.leave_soon(within_seconds=0.0)
    flight.run()

    flight = flight_of(2, world_size=2)
    flight.start()
    share_of(2, rank=1, world_size=2, tensors={}).carry_out()
    flight.join()

    assert flight.error is None
    assert directory.steps() == [2]


@pytest.mark.parametrize("ending", ["committed", "refused", "torn", "unforeseen"])
def test_the_lock_is_let_go_however_the_save_ends(directory, flight_of, ending, tmp_path):
    flight = flight_of(
        transfer=torn_transfer() if ending == "torn" else None, values=object() if ending == "unforeseen" else None
    )
    written = directory.incomplete(1, "00ff").path
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "save.lock").hardlink_to(written / "save.lock")  # outlives the directory
    if ending == "refused":
        (written / "rank-00000.safetensors").mkdir()
    assert is_held(tmp_path / "kept")

    flight.run()

    assert (flight.error is None) == (ending == "committed")
    assert not is_held(tmp_path / "kept")


@pytest.mark.parametrize("rank", [0, 1])
def test_where_the_writer_is_killed_the_other_ranks_hear_of_it_and_rank_0_leaves_nothing(
    directory, share_of, flight_of, rank
):
    lock = directory.begin(1, "00ff") if rank == 1 else None
    flight = flight_of(rank=rank, world_size=2)
    flight.start()
    own = "rank-00000.safetensors" if rank == 0 else "rank-00001.part.json"
    while not (
        directory.incomplete(1, "00ff").path / own
    ).exists():  # until it waits for the other rank, or is about to
        pass
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    # The session's servers may be children too.
    [process] = [child for child in children if "saving.writer.process" in " ".join(child.cmdline())]
    process.kill()
    flight.join()

    assert "was killed by signal 9" in str(flight.error)
    if rank == 0:
        assert names_in(directory.path) == []
    else:
        with pytest.raises(CheckpointWriteError, match=r"Rank 1 could not write its shard: .*killed by signal 9"):
            share_of(world_size=2).carry_out()
        lock.release()


def test_a_save_that_met_a_full_disk_is_written_again_as_often_as_room_is_made(directory, flight_of, full_disk, caplog):
    removable = [[7], [8], []]
    pause = pause_of(directory, lambda step: removable.pop(0))
    committed: list[Committed] = []
    flight = flight_of(writer=full_disk(2), disk_pause=pause, on_commit=committed.append)

    flight.run()

    assert flight.error is None
    assert committed == [Committed(1, directory.manifest(1).size_bytes)]
    assert list(verify_checkpoint(directory, 1)) == []
    assert names_in(directory.path) == ["step-00000001"]
    assert "checkpoint_save_failed" not in [getattr(record, "event", "") for record in caplog.records]


def test_where_no_more_room_can_be_made_saving_is_paused(directory, flight_of, full_disk):
    removable = [[7], []]
    pause = pause_of(directory, lambda step: removable.pop(0))
    flight = flight_of(writer=full_disk(9), disk_pause=pause)

    flight.run()

    assert flight.is_excused
    assert pause.is_paused
    assert names_in(directory.path) == []


def test_a_disk_that_is_full_again_when_the_save_begins_anew_pauses_saving_too(directory, flight_of, full_disk):
    rooms = [[7], []]
    pause = pause_of(directory, lambda step: rooms.pop(0))
    flight = flight_of(writer=full_disk(1), disk_pause=pause)

    def refuse(step: int, save_id: str) -> SaveLock:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory.begin = refuse
    flight.run()

    assert flight.is_excused
    assert pause.is_paused
    assert names_in(directory.path) == []


def test_a_rank_among_others_does_not_write_again_for_they_have_heard_that_it_failed(directory, flight_of, full_disk):
    pause = pause_of(directory, lambda step: [7])
    writer = full_disk(1)
    flight = flight_of(world_size=2, writer=writer, disk_pause=pause)

    flight.run()

    assert flight.is_excused
    assert not pause.is_paused  # room was made, so that the next save may work
    assert names_in(directory.path) == []


def test_another_failure_is_no_matter_of_the_disks_pause(directory, flight_of):
    pause = pause_of(directory, lambda step: [7])
    flight = flight_of(disk_pause=pause)
    directory.abandon(directory.incomplete(1, "00ff"))

    flight.run()

    assert flight.error is not None
    assert not flight.is_excused
    assert not pause.is_paused


def test_where_no_thread_can_be_started_training_waits_but_the_checkpoint_is_made(
    directory, flight_of, monkeypatch, caplog
):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    flight = flight_of()
    with monkeypatch.context() as patch:
        # As the system's own limit would: a real one would hit the test's writer too.
        patch.setattr(threading.Thread, "start", refuse)
        flight.start()
    flight.join()

    assert flight.error is None
    assert directory.steps() == [1]
    assert "checkpoint-step-1 is done while training waits: can't start new thread" in caplog.text
