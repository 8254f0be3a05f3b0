"""The keeper: the writer process in its second office, in which it outlives its trainer and keeps the newest copies."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.memory_copies.kept import KeptCopies, KeptCopy
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.peer_door import Door, PeerDoor
from production_ml.fault_tolerance.memory_copies.peer_visit import CopySender
from production_ml.fault_tolerance.memory_copies.record import CopyRecord, decode_record
from production_ml.fault_tolerance.memory_copies.server import KeeperServer, TrainerLife
from production_ml.fault_tolerance.memory_copies.visit import dismiss_others, is_listening, take_over
from production_ml.fault_tolerance.saving.order import SaveOrder
from production_ml.fault_tolerance.saving.parts import Part
from production_ml.fault_tolerance.saving.writer.readable import await_readable

_OUTPUTS: Final = (1, 2)


class Keeper:
    """Keeps copies for the run's next attempt.

    Args:
        place: Where it is found.
        local_rank: Of its trainer: whoever is in this place next takes over what is kept.
        newest: How many steps to keep.
        trainer_pid: Its pid.
        trainer: Ready to read once it is dead.
        peer_host: Where keepers of other nodes reach this one; None where there are none.

    Raises:
        OSError: It cannot listen there.
        CheckpointError: The place is another user's.
    """

    def __init__(
        self,
        place: MeetingPlace,
        *,
        local_rank: int,
        newest: int,
        trainer_pid: int,
        trainer: list[int],
        peer_host: str | None = None,
    ) -> None:
        self._meeting_place = place
        self._has_successors = place.owner_pid != trainer_pid
        self._newest = newest
        self._life = TrainerLife(trainer)
        self._is_hashed = threading.Event()
        self._is_hashed.set()
        self._has_dismissed_others = False
        self.copies = KeptCopies(newest)
        self.door: Door | None = None
        listener, self._name = place.listen()
        if peer_host is not None:
            self._open_to_peers(peer_host)
        # Also where nobody can reach this keeper: whatever is to be sent is answered for.
        self._sender = CopySender(self.copies)
        self._sender.start()
        self._server = KeeperServer(
            listener,
            self.copies,
            life=self._life,
            await_hashed=self._await_hashed,
            place={"local_rank": local_rank, "door": self.door},
        )
        self._server.start()
        for record, descriptor, standing in take_over(place, self._name, local_rank):
            self._adopt(record, descriptor, standing)

    def begin(self) -> None:
        """A copy is in the making: who asks what is kept waits for it."""
        self._is_hashed.clear()

    def end(self) -> None:
        """None is in the making any more."""
        self._is_hashed.set()

    def keep(self, order: SaveOrder, part: Part, *, slot: int, descriptor: int | None, is_sent: bool = False) -> None:
        """Hold what an image holds, and send it to the peer if it is to be sent."""
        record = CopyRecord(
            step=order.step,
            save_id=order.save_id,
            rank=order.rank,
            world_size=order.world_size,
            created_at=SYSTEM_CLOCK.wall_seconds(),
            metrics=order.metrics,
            values=order.values,
            part=part,
        )
        self.copies.add(KeptCopy.of(record, descriptor if part.files else None, slot=slot))
        if is_sent:
            self._sender.offer(order.save_id, order.rank)

    def introduce(self, peer: Sequence[Any] | None, *, held: str | None) -> None:
        """Send copies to this keeper of another node from now on; all peers hold those of the save `held`."""
        self._sender.introduce(None if peer is None else Door(*peer), held=held)

    def transfers(self) -> dict[str, Any]:
        """How this keeper is reached, and what became of what was to be sent."""
        return {"door": self.door, "done": self._sender.done, "failed": self._sender.failed}

    def reuse(self, message: dict[str, Any]) -> None:
        """The trainer begins to write into one of its images."""
        self.copies.reuse(message["slot"], agreed=message["agreed"], replicated=message["replicated"])
        if message["agreed"] >= self._newest and not self._has_dismissed_others:
            self._has_dismissed_others = True
            others = threading.Thread(target=dismiss_others, args=(self._meeting_place, self._name), daemon=True)
            others.start()

    def outlive(self) -> None:
        """The trainer is gone: stay until a successor has taken over, or the run is over."""
        self._life.end()
        _let_go_of_outputs()
        owner = self._meeting_place.watch_owner() if self._has_successors else None
        if owner is not None:
            self._await_hashed()
            if self.copies.all():
                await_readable([owner, self._server.is_dismissed])
        self._leave()

    def _open_to_peers(self, host: str) -> None:
        try:
            peers = PeerDoor(host, self.copies)
        except OSError:
            # Without it a crash of a worker is recovered from memory all the same.
            return
        self.door = peers.door
        peers.start()

    def _adopt(self, record: str, descriptor: int | None, standing: dict[str, bool]) -> None:
        try:
            decoded = decode_record(record, step=0)
            self.copies.add(KeptCopy.of(decoded, descriptor, is_adopted=True, **standing))
        except DamagedCheckpointError:
            # Memory has flipped a bit in it; nobody could load it.
            if descriptor is not None:
                os.close(descriptor)

    def _await_hashed(self) -> None:
        self._is_hashed.wait()

    def _leave(self) -> None:
        self._meeting_place.leave(self._name)
        for path in self._meeting_place.sockets():
            if not is_listening(path):
                self._meeting_place.leave(path.name)


def _let_go_of_outputs() -> None:
    """Whoever reads what the trainer printed waits for the end of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _OUTPUTS:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
