"""What the tests of copies in memory share: a copy of a small shard, as a keeper makes it, and a keeper's two doors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.kept import KeptCopies, KeptCopy
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.peer_door import PeerDoor
from production_ml.fault_tolerance.memory_copies.record import CopyRecord
from production_ml.fault_tolerance.memory_copies.server import KeeperServer, TrainerLife
from production_ml.fault_tolerance.saving.commit import complete_part
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import Holding, SaveOrder, ShardContents

ROWS = 1000


def make_copy(step: int = 1, *, rank: int = 0, world_size: int = 1, save_id: str = "", **kept: Any) -> KeptCopy:
    """A copy of one rank's rows of a tensor of 1,000 rows and one column per rank."""
    held = Holding("x", "x", "F32", (ROWS, world_size), (0, rank), (ROWS, 1))
    contents = ShardContents.of((held,))
    image = ShardImage()
    image.resize(contents.layout.size_bytes)
    image.data[contents.layout.extents["x"].begin] = step % 256
    order = SaveOrder(
        directory=CheckpointDirectory(Path("/nowhere")),
        step=step,
        save_id=save_id or f"{step:04x}",
        rank=rank,
        world_size=world_size,
        metrics={"loss": 0.5},
        values={"model": {}, "optimizer": None, "extra": {}},
        rank_values=None,
        contents=contents,
        on_disk=False,
    )
    record = CopyRecord(
        step=step,
        save_id=order.save_id,
        rank=rank,
        world_size=world_size,
        created_at=1000.0 + step,
        metrics=order.metrics,
        values=order.values,
        part=complete_part(order, image.data),
    )
    descriptor = os.dup(image.descriptor)
    image.close()
    return KeptCopy.of(record, descriptor, **kept)


@pytest.fixture
def copy_of() -> Callable[..., KeptCopy]:
    """A copy of a step, by rank, world size and save."""
    return make_copy


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeetingPlace:
    """A meeting place in a runtime directory of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return MeetingPlace.of(str(tmp_path / "checkpoints"))


class Kept:
    """A keeper's door, and what the test does to the keeper."""

    def __init__(self, place, *, local_rank=0):
        self.copies = KeptCopies(1)
        self.read, self._write = os.pipe()
        self.life = TrainerLife([self.read])
        self.listener, self.name = place.listen()
        told = {"local_rank": local_rank, "door": None}
        self.server = KeeperServer(self.listener, self.copies, life=self.life, await_hashed=self.note_wait, place=told)
        self.waits = 0
        self.server.start()

    def note_wait(self):
        self.waits += 1

    def lose_trainer(self):
        os.close(self._write)
        self.life.end()

    def is_dismissed(self):
        try:
            return os.eventfd_read(self.server.is_dismissed) == 1
        except BlockingIOError:
            return False


@pytest.fixture
def keeper(place: MeetingPlace) -> Kept:
    """One on this host."""
    return Kept(place)


@pytest.fixture
def socket_of(place: MeetingPlace) -> Callable[[Kept], Path]:
    """Where a keeper is met."""
    return lambda keeper: place.path / keeper.name


@pytest.fixture
def peers_copies() -> KeptCopies:
    """What a keeper of another node holds."""
    return KeptCopies(1)


@pytest.fixture
def peer(peers_copies: KeptCopies) -> Iterator[PeerDoor]:
    """That keeper's door."""
    door = PeerDoor("127.0.0.1", peers_copies)
    door.start()
    yield door
    door.close()
