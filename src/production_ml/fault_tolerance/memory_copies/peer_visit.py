"""A visit to a keeper on another node: to leave it a copy, or to fetch one after a loss."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Final

from production_ml.fault_tolerance.memory_copies.kept import KeptCopies
from production_ml.fault_tolerance.memory_copies.peer_door import (
    MOST_RECORD_BYTES,
    STALL_SECONDS,
    Door,
    receive_image,
    send_image,
)
from production_ml.fault_tolerance.memory_copies.record import decode_record
from production_ml.fault_tolerance.memory_copies.visit import GoneError
from production_ml.fault_tolerance.saving.writer import messages

_VERIFY_SECONDS: Final = 600.0
"""How long a peer may take to verify what it was sent."""


class CopySender(threading.Thread):
    """Sends copies to a peer, one at a time, beside training; of those that wait the newest alone is sent.

    Args:
        copies: Where they are held.
    """

    def __init__(self, copies: KeptCopies) -> None:
        super().__init__(name="checkpoint-sender", daemon=True)
        self._copies = copies
        self._peer: Door | None = None
        self._held: str | None = None
        self._next: tuple[str, int] | None = None
        self._changed = threading.Condition()
        self.done: str | None = None
        """The id of the save whose copy was sent last, and is held by the peer."""
        self.failed: str | None = None
        """The id of the save whose copy could not be sent, where that was the last."""

    def introduce(self, peer: Door | None, *, held: str | None) -> None:
        """Send to this one from now on; all peers hold the copies of the save `held`."""
        self._peer, self._held = peer, held

    def offer(self, save_id: str, rank: int) -> None:
        """Send this copy when the one under way has been sent."""
        with self._changed:
            self._next = save_id, rank
            self._changed.notify()

    def run(self) -> None:
        """Send until the process ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                assert self._next is not None  # noqa: S101 - just waited for
                (save_id, rank), self._next = self._next, None
            try:
                self.send(save_id, rank)
                self.done, self.failed = save_id, None
            except (OSError, ValueError, GoneError):
                self.failed = save_id

    def send(self, save_id: str, rank: int) -> None:
        """Send a copy, and return when the peer holds it.

        Raises:
            GoneError: There is no peer, or no copy, or the peer does not take it.
            OSError: The peer cannot be reached.
        """
        peer = self._peer  # looked at once: another thread may take it away
        if peer is None:
            raise GoneError("there is no peer")
        with self._copies.borrow(save_id, rank) as copy, visit(peer) as channel:
            if copy is None:
                raise GoneError("the copy is not held any more")
            messages.send(channel, {"kind": "offer", "record": copy.record, "held": self._held})
            send_image(channel, copy)
            channel.settimeout(_VERIFY_SECONDS)
            answer = messages.receive(channel, MOST_RECORD_BYTES)
            if answer is None or answer[0]["kind"] != "stored":
                raise GoneError("the peer did not take it")


@contextlib.contextmanager
def visit(door: Door) -> Iterator[socket.socket]:
    """A connection to a keeper that has let us in.

    Raises:
        OSError: It cannot be reached.
    """
    with socket.create_connection((door.host, door.port), timeout=STALL_SECONDS) as channel:
        messages.send(channel, {"token": door.token})
        yield channel


def fetch(door: Door, save_id: str, rank: int, *, is_record_only: bool) -> tuple[str, int | None]:
    """A copy's record, and the descriptor of an image of its bytes, which is the caller's to close.

    Raises:
        GoneError: The keeper cannot be reached, or has not got it any more.
        DamagedCheckpointError: The record is not what was kept.
    """
    question = {"kind": "fetch", "save_id": save_id, "rank": rank, "is_record_only": is_record_only}
    try:
        with visit(door) as channel:
            messages.send(channel, question)
            answer = messages.receive(channel, MOST_RECORD_BYTES)
            if answer is None or answer[0]["kind"] != "copy":
                raise GoneError("the peer does not hold the copy any more")
            encoded = str(answer[0]["record"])
            image = None if is_record_only else receive_image(channel, decode_record(encoded, step=0))
    except (OSError, ValueError, MemoryError) as problem:
        raise GoneError(str(problem)) from problem
    if image is None:
        return encoded, None
    with contextlib.closing(image):
        return encoded, os.dup(image.descriptor)
