"""The writer process: maps the images of its trainer, writes them when told to, and finishes what a dead trainer began.

It imports no torch, so that it is there in a tenth of a second and takes a few megabytes.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
from typing import Any, Final

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.saving.commit import GivenUpError, carry_out
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.fault_tolerance.saving.writer import messages

_ORPHAN_SECONDS: Final = 5.0
"""How long a save that is under way waits for other ranks once its own trainer is dead: theirs may be dead too."""


class WriterProcess:
    """What the process knows between two messages.

    Args:
        channel: To the trainer.
        trainer: Descriptors that can be read from when the trainer is dead; its life decides over this process's own.
    """

    def __init__(self, channel: socket.socket, trainer: list[int]) -> None:
        self._channel = channel
        self._trainer = trainer
        self._image: ShardImage | None = None
        self._contents: ShardContents | None = None
        self._patience = Patience()
        self._saving: threading.Thread | None = None

    def run(self) -> None:
        """Serve until the trainer closes the channel or is dead, and no save is under way."""
        while (received := self._next()) is not None:
            message, descriptors = received
            match message["kind"]:
                case "image":
                    self._map(descriptors[0])
                case "contents":
                    self._contents = ShardContents.from_json(message["holdings"])
                case "save":
                    self._save(message, descriptors)
                case "leave_soon":
                    self._patience.leave_soon(message["seconds"])
        self._patience.leave_soon(_ORPHAN_SECONDS)
        if self._saving is not None:
            self._saving.join()

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        # A worker that the trainer has forked may hold the channel open after the trainer's death.
        watched = [self._channel.fileno(), *self._trainer]
        ready, _, _ = select.select(watched, [], [])
        return messages.receive(self._channel) if self._channel.fileno() in ready else None

    def _map(self, descriptor: int) -> None:
        if self._image is not None:
            self._image.close()
        self._image = ShardImage(descriptor)

    def _save(self, message: dict[str, Any], descriptors: list[int]) -> None:
        lock = SaveLock.adopt(descriptors[0]) if descriptors else None
        self._patience = Patience()
        order = SaveOrder(
            directory=open_place(message["directory"]),
            step=message["step"],
            save_id=message["save_id"],
            rank=message["rank"],
            world_size=message["world_size"],
            metrics=message["metrics"],
            values=message["values"],
            rank_values=message["rank_values"],
            contents=self._contents or ShardContents.of(()),
        )
        self._saving = threading.Thread(target=self._carry_out, args=(order, self._patience, lock))
        self._saving.start()

    def _carry_out(self, order: SaveOrder, patience: Patience, lock: SaveLock | None) -> None:
        image = memoryview(b"") if self._image is None else self._image.data
        try:
            manifest = carry_out(order, image, patience)
            size_bytes = 0 if manifest is None else manifest.size_bytes
            answer: dict[str, Any] = {"kind": "saved", "size_bytes": size_bytes}
        except CheckpointWriteError as error:
            answer = {
                "kind": "failed",
                "what": error.what,
                "meaning": error.meaning,
                "cure": error.cure,
                "errno": error.errno,
                "is_given_up": isinstance(error, GivenUpError),
            }
        except Exception as problem:  # noqa: BLE001 - a thread has nobody to raise to: the trainer raises it
            what = f"The checkpoint of step {order.step} failed: {problem!r}"
            answer = {
                "kind": "failed",
                "what": what,
                "meaning": UNCHANGED,
                "cure": "",
                "errno": None,
                "is_given_up": False,
            }
        finally:
            if lock is not None:
                lock.release()
        try:
            messages.send(self._channel, answer)
        except OSError:
            # The trainer died meanwhile. The checkpoint is there nevertheless, and the next start finds it.
            return


def main(channel_descriptor: int, *trainer: int) -> None:
    """Serve the trainer at the other end of the channel."""
    # A terminal's Ctrl-C and a scheduler's SIGTERM are for the trainer: what it has handed over is to be written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    WriterProcess(socket.socket(fileno=channel_descriptor), list(trainer)).run()
