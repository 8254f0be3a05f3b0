"""The keeper's door: answers on a Unix socket what it holds, lends its images, and hands all over to a successor."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from production_ml.fault_tolerance.memory_copies.kept import KeptCopies
from production_ml.fault_tolerance.memory_copies.visitors import visitors
from production_ml.fault_tolerance.saving.writer import messages
from production_ml.fault_tolerance.saving.writer.readable import await_readable

_PATIENCE_SECONDS: Final = 10.0
"""Of a visitor and for one: all are on this host, and what they send is small."""
_CREDENTIALS: Final = struct.Struct("3i")


class TrainerLife:
    """What the keeper knows of its trainer's end.

    Args:
        watched: Ready to read once the trainer is dead; empty where that cannot be known.
    """

    def __init__(self, watched: list[int]) -> None:
        self._watched = watched
        self._said_all = threading.Event()

    def end(self) -> None:
        """All that the trainer has said is heard, and it says no more."""
        self._said_all.set()

    def has_ended(self) -> bool:
        """Whether it has; where it has just died, its last words are waited for."""
        if not self._said_all.is_set() and self._watched and await_readable(self._watched, 0):
            self._said_all.wait(_PATIENCE_SECONDS)
        return self._said_all.is_set()


class KeeperServer(threading.Thread):
    """Serves visitors one after the other.

    Args:
        listener: Where they come to.
        copies: What is held.
        life: Of the trainer.
        await_hashed: Returns when no copy is being made.
        place: What else there is to tell: the local rank, and how the keeper is reached from other nodes.
    """

    def __init__(
        self,
        listener: socket.socket,
        copies: KeptCopies,
        *,
        life: TrainerLife,
        await_hashed: Callable[[], None],
        place: dict[str, Any],
    ) -> None:
        super().__init__(name="checkpoint-keeper", daemon=True)
        self._listener = listener
        self._copies = copies
        self._life = life
        self._await_hashed = await_hashed
        self._place = place
        self.is_dismissed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Ready to read once nobody needs this keeper any more."""

    def run(self) -> None:
        """Serve until the process ends."""
        for visitor in visitors(self._listener):
            with visitor, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                visitor.settimeout(_PATIENCE_SECONDS)
                if _is_own_user(visitor):
                    self._serve(visitor)

    def _serve(self, visitor: socket.socket) -> None:
        while (received := messages.receive(visitor)) is not None:
            asked, descriptors = received
            for descriptor in descriptors:
                os.close(descriptor)
            match asked["kind"]:
                case "list":
                    self._list(visitor)
                case "fetch":
                    self._lend(visitor, asked)
                case "forget":
                    self._copies.forget(asked["save_ids"])
                    messages.send(visitor, {"kind": "forgotten"})
                case "take_over":
                    self._hand_over(visitor, asked)
                case "dismiss":
                    self._dismiss(visitor)

    def _list(self, visitor: socket.socket) -> None:
        if self._life.has_ended():
            self._await_hashed()
        summaries = [copy.head() for copy in self._copies.all()]
        messages.send(visitor, {"kind": "copies", "copies": summaries, **self._place})

    def _lend(self, visitor: socket.socket, asked: dict[str, Any]) -> None:
        with self._copies.borrow(asked["save_id"], asked["rank"]) as copy:
            if copy is None:
                messages.send(visitor, {"kind": "gone"})
                return
            message = {"kind": "copy", "record": copy.record}
            messages.send(visitor, message, [] if copy.descriptor is None else [copy.descriptor])

    def _hand_over(self, visitor: socket.socket, asked: dict[str, Any]) -> None:
        """Give a successor everything, and end once it has it."""
        if asked["local_rank"] != self._place["local_rank"] or not self._life.has_ended():
            messages.send(visitor, {"kind": "refused"})
            return
        self._await_hashed()
        for held in self._copies.all():
            with self._copies.borrow(held.save_id, held.rank) as copy:
                if copy is not None:
                    standing = {"is_replica": copy.is_replica, "is_everywhere": copy.is_everywhere}
                    message = {"kind": "copy", "record": copy.record, "standing": standing}
                    messages.send(visitor, message, [] if copy.descriptor is None else [copy.descriptor])
        messages.send(visitor, {"kind": "all"})
        received = messages.receive(visitor)
        if received is not None and received[0]["kind"] == "taken":
            os.eventfd_write(self.is_dismissed, 1)

    def _dismiss(self, visitor: socket.socket) -> None:
        """There are newer copies of all ranks, and as many as are wanted."""
        if self._life.has_ended():
            self._await_hashed()
            os.eventfd_write(self.is_dismissed, 1)
        messages.send(visitor, {"kind": "dismissed"})


def _is_own_user(visitor: socket.socket) -> bool:
    """The directory is closed to other users; this is for the root of a container that shares it."""
    credentials = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.getuid())
