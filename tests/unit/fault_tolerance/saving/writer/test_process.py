"""Whatever becomes of an order, the trainer gets an answer to it, and what was begun is finished at the end."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from production_ml.fault_tolerance.checkpoint_format.save_lock import is_held
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.saving.writer import messages
from production_ml.fault_tolerance.saving.writer.process import WriterProcess


@pytest.fixture
def served() -> Iterator[tuple[socket.socket, threading.Thread]]:
    """The trainer's end of the channel, and who serves the other: a thread here, with the process's own loop."""
    mine, theirs = socket.socketpair()
    serving = threading.Thread(target=WriterProcess(theirs, []).run)
    serving.start()
    yield mine, serving
    mine.close()
    serving.join()
    theirs.close()


@pytest.fixture
def channel(served) -> socket.socket:
    return served[0]


@pytest.fixture
def order(directory, share_of, channel) -> Callable[..., None]:
    """Orders the save of a step from rank 0."""

    def send(
        step: int, *, world_size: int = 1, has_image: bool = True, on_disk: bool = True, in_the_way: str = ""
    ) -> None:
        share = share_of(step, world_size=world_size)
        lock = directory.begin(step, "00ff")
        if in_the_way:
            (directory.incomplete(step, "00ff").path / in_the_way).mkdir()
        slot = share.image.descriptor
        if has_image:
            messages.send(channel, {"kind": "image", "slot": slot}, [slot])
        messages.send(channel, {"kind": "contents", "holdings": share.order.contents.to_json()})
        facts = {"step": step, "save_id": "00ff", "rank": 0, "world_size": world_size, "metrics": {}}
        facts |= {"directory": directory.url, "values": share.order.values, "rank_values": None}
        facts |= {"on_disk": on_disk, "slot": slot, "is_sent": False}
        messages.send(channel, {"kind": "save", "number": 100 + step, **facts}, [lock.descriptor])
        lock.hand_over()

    return send


def answer(channel: socket.socket) -> dict[str, Any]:
    received = messages.receive(channel)
    assert received is not None
    return received[0]


def test_a_save_is_answered_under_its_number_once_it_is_committed(directory, channel, order):
    for step in (1, 2):
        order(step)

        told = answer(channel)

        assert (told["number"], told["kind"]) == (100 + step, "saved")
        assert told["size_bytes"] == directory.manifest(step).size_bytes
        assert list(verify_checkpoint(directory, step)) == []


def test_what_the_disk_refuses_is_answered_with_the_systems_number_and_the_next_save_works(directory, channel, order):
    order(1, in_the_way="rank-00000.safetensors")

    told = answer(channel)
    order(2)

    assert (told["kind"], told["errno"]) == ("failed", errno.EEXIST)
    assert answer(channel)["kind"] == "saved"
    assert directory.steps() == [2]


def test_what_nobody_foresaw_is_answered_too_and_leaves_neither_a_lock_nor_a_directory(directory, channel, order):
    order(1, has_image=False)

    told = answer(channel)

    assert (told["kind"], told["errno"], told["is_given_up"]) == ("failed", None, False)
    assert "The checkpoint of step 1 failed: " in told["what"]
    assert list(directory.path.iterdir()) == []


def test_where_nothing_is_kept_an_order_for_memory_alone_is_answered_so(channel, order):
    order(1, on_disk=False)

    told = answer(channel)

    assert (told["kind"], told["is_kept"]) == ("no_keeper", False)


def test_a_save_that_is_under_way_when_the_channel_ends_is_finished_first(directory, served, order, share_of):
    channel, serving = served
    order(1, world_size=2)
    channel.shutdown(socket.SHUT_WR)
    written = directory.incomplete(1, "00ff")
    assert is_held(written.path)

    share_of(1, rank=1, world_size=2, tensors={}).carry_out()
    serving.join()

    assert directory.steps() == [1]
