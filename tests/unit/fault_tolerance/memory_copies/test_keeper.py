"""A keeper outlives its trainer for as long as it may be needed, and not a moment longer."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.visit import what_keepers_hold
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import Holding, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.writer import messages
from production_ml.fault_tolerance.saving.writer.client import Keeping, Writer
from production_ml.monitoring.run_directory import process_start

SLEEP = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
CONTENTS = ShardContents.of((Holding("x", "x", "F32", (8,), (0,), (8,)),))


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """Who owns the run, such as a launcher."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


@pytest.fixture
def owned(place: MeetingPlace, owner: subprocess.Popen[bytes]) -> MeetingPlace:
    """Where the keepers of that owner's run meet."""
    return replace(place, owner_pid=owner.pid, owner_start=process_start(owner.pid))


@pytest.fixture
def trainer(owned: MeetingPlace) -> Iterator[Callable[..., Writer]]:
    """A trainer that keeps some steps in memory and then goes, or one that begins after it."""
    with contextlib.ExitStack() as stack:

        def train(*steps: int, newest: int = 2, local_rank: int = 0) -> Writer:
            writer = Writer(Keeping(place=owned, local_rank=local_rank, newest=newest))
            stack.callback(writer.close)
            images = [ShardImage() for _ in range(newest + 1)]
            for number, step in enumerate(steps):
                image = images[number % len(images)]
                image.resize(CONTENTS.layout.size_bytes)
                writer.reuse(image, agreed=min(number, newest))
                writer.write(order(step), image, None)
            return writer

        yield train


def order(step: int) -> SaveOrder:
    return SaveOrder(
        directory=CheckpointDirectory(Path("/nowhere")),
        step=step,
        save_id=f"{step:04x}{os.urandom(4).hex()}",
        rank=0,
        world_size=1,
        metrics={},
        values={"model": {}, "optimizer": None, "extra": {}},
        rank_values=None,
        contents=CONTENTS,
        on_disk=False,
    )


def held(place: MeetingPlace) -> dict[str, list[int]]:
    """The steps that each keeper holds."""
    return {path.name: sorted(copy["step"] for copy in told["copies"]) for path, told in what_keepers_hold(place)}


def pid_of(name: str) -> int:
    return int(name.split("-")[0])


def test_it_keeps_what_a_dead_trainer_left_and_the_successors_keeper_takes_it_over(owned, trainer):
    trainer(1, 2, 3).close()
    [(old, steps)] = held(owned).items()
    ended = os.pidfd_open(pid_of(old))

    trainer(4)
    wait_for(ended)

    assert steps == [1, 2, 3]
    [(new, steps)] = held(owned).items()
    assert new != old
    assert steps[-3:] == [2, 3, 4]


def test_a_trainer_that_dies_with_a_question_unanswered_leaves_its_copies_all_the_same(owned, trainer):
    writer = trainer(1, 2)
    [name] = held(owned)
    keeper = psutil.Process(pid_of(name))
    keeper.suspend()  # so that the answer comes too late
    messages.send(writer._channel, {"kind": "transfers", "number": 7})
    writer.close()
    keeper.resume()

    trainer(3)

    [steps] = [steps for other, steps in held(owned).items() if other != name]
    assert steps == [1, 2, 3]


def test_after_an_interrupted_exchange_a_new_keeper_begins_and_nothing_of_the_old_one_is_counted_on(owned, trainer):
    writer = trainer(1)
    [old] = held(owned)
    writer._is_amid = True  # as an exception leaves it that comes amid a message
    assert writer.transfers() == {}
    assert writer.kept == set()

    image = ShardImage()
    image.resize(CONTENTS.layout.size_bytes)
    writer.write(order(2), image, None)

    assert old not in held(owned)
    assert list(held(owned).values()) == [[2]]


def test_a_predecessors_copies_go_as_newer_ones_come(owned, trainer):
    trainer(1, 2).close()
    [old] = held(owned)
    ended = os.pidfd_open(pid_of(old))

    trainer(3, 4, 5)
    wait_for(ended)

    [steps] = held(owned).values()
    assert steps == [3, 4, 5]


def test_it_ends_with_the_runs_owner(owned, owner, trainer):
    trainer(1).close()
    [name] = held(owned)
    ended = os.pidfd_open(pid_of(name))

    owner.kill()
    wait_for(ended)

    assert not owned.path.exists()


def test_it_ends_with_its_trainer_where_it_holds_nothing(owned, trainer):
    writer = trainer()
    writer.prepare(ShardImage())
    writer.transfers()
    [name] = held(owned)
    ended = os.pidfd_open(pid_of(name))

    writer.close()
    wait_for(ended)

    assert not owned.path.exists()


def test_the_keeper_of_a_place_that_nobody_has_any_more_ends_when_others_hold_newer_steps(owned, trainer):
    trainer(1, local_rank=1).close()
    [name] = held(owned)
    ended = os.pidfd_open(pid_of(name))

    trainer(2, 3, 4, local_rank=0)
    wait_for(ended)

    assert list(held(owned).values()) == [[2, 3, 4]]


def test_a_keeper_that_was_killed_is_followed_by_one_that_holds_nothing(owned, trainer):
    writer = trainer(1, 2)
    assert len(writer.kept) == 2
    [name] = held(owned)
    ended = os.pidfd_open(pid_of(name))

    os.kill(pid_of(name), 9)
    wait_for(ended)
    writer.prepare(ShardImage())
    writer.transfers()

    assert writer.kept == set()
    assert list(held(owned).values()) == [[]]


def test_what_cannot_be_sent_is_answered_for_also_where_no_other_node_reaches_the_keeper(owned, trainer):
    writer = trainer(1)
    image = ShardImage()
    image.resize(CONTENTS.layout.size_bytes)
    sent = replace(order(2), is_sent=True)

    writer.write(sent, image, None)

    deadline = time.monotonic() + 60
    while (told := writer.transfers())["failed"] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (told["door"], told["done"], told["failed"]) == (None, None, sent.save_id)


def wait_for(process: int) -> None:
    """Return when it has ended; the test's own time limit is the only one."""

    select.select([process], [], [])
    os.close(process)
