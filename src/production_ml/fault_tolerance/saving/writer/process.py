"""The writer process: maps the images of its trainer, writes them when told to, and finishes what a dead trainer began.

It imports no torch, so that it is there in a tenth of a second and takes a few megabytes.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import CheckpointError, CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.memory_copies.keeper import Keeper
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.saving.commit import GivenUpError, carry_out, complete_part
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.parts import Part
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.fault_tolerance.saving.writer import messages
from production_ml.fault_tolerance.saving.writer.readable import await_readable

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
        self._images: dict[int, ShardImage] = {}
        self._keeper: Keeper | None = None
        self._no_keeper = CheckpointError("No copies are to be kept in memory.")
        self._contents: ShardContents | None = None
        self._patience = Patience()
        self._saving: threading.Thread | None = None

    def run(self) -> None:
        """Serve until the trainer closes the channel or is dead, and no save is under way."""
        try:
            self._serve()
        finally:
            self._patience.leave_soon(_ORPHAN_SECONDS)
            if self._keeper is not None:
                self._keeper.outlive()
            if self._saving is not None:
                self._saving.join()

    def _serve(self) -> None:
        while (received := self._next()) is not None:
            message, descriptors = received
            match message["kind"]:
                case "image":
                    self._map(message["slot"], descriptors[0])
                case "contents":
                    self._contents = ShardContents.from_json(message["holdings"])
                case "save":
                    self._save(message, descriptors)
                case "leave_soon":
                    self._patience.leave_soon(message["seconds"])
                case "keep_copies":
                    self._keep_copies(message)
                case "transfers":
                    self._tell_of_transfers(message["number"])
                case "reuse" if self._keeper is not None:
                    self._keeper.reuse(message)
                case "introduce" if self._keeper is not None:
                    self._keeper.introduce(message["peer"], held=message["held"])

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        # A worker that the trainer has forked may hold the channel open after the trainer's death.
        watched = [self._channel.fileno(), *self._trainer]
        ready = await_readable(watched)
        return messages.receive(self._channel) if self._channel.fileno() in ready else None

    def _keep_copies(self, message: dict[str, Any]) -> None:
        place = MeetingPlace(
            path=Path(message["path"]), owner_pid=message["owner_pid"], owner_start=message["owner_start"]
        )
        try:
            self._keeper = Keeper(
                place,
                local_rank=message["local_rank"],
                newest=message["newest"],
                trainer_pid=message["trainer_pid"],
                trainer=self._trainer,
                peer_host=message["peer_host"],
            )
        except CheckpointError as error:
            self._no_keeper = error
        except OSError as problem:
            self._no_keeper = CheckpointError(f"{place.path}: copies cannot be kept in memory ({problem.strerror}).")

    def _tell_of_transfers(self, number: int) -> None:
        told = {} if self._keeper is None else self._keeper.transfers()
        # The trainer may have died meanwhile: the next look at the channel tells.
        with contextlib.suppress(OSError):
            messages.send(self._channel, {"number": number, **told})

    def _map(self, slot: int, descriptor: int) -> None:
        if slot in self._images:
            self._images[slot].close()
        self._images[slot] = ShardImage(descriptor)

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
            on_disk=message["on_disk"],
        )
        if self._keeper is not None:
            self._keeper.begin()
        arguments = (order, message, self._patience, lock)
        self._saving = threading.Thread(target=self._carry_out, args=arguments)
        self._saving.start()

    def _carry_out(self, order: SaveOrder, message: dict[str, Any], patience: Patience, lock: SaveLock | None) -> None:
        slot, is_sent = message["slot"], message["is_sent"]
        image = self._images.get(slot)
        data = memoryview(b"") if image is None else image.data
        keeper = self._keeper
        is_kept = False

        def keep(part: Part) -> None:
            nonlocal is_kept
            if keeper is not None:
                descriptor = None if image is None else image.descriptor
                keeper.keep(order, part, slot=slot, descriptor=descriptor, is_sent=is_sent)
                keeper.end()
                is_kept = True

        answer: dict[str, Any]
        try:
            if keeper is None and not order.on_disk:
                told = self._no_keeper
                answer = {"kind": "no_keeper", "what": told.what, "meaning": told.meaning, "cure": told.cure}
            else:
                answer = {"kind": "saved", "size_bytes": self._fulfil(order, data, patience, keep)}
        except CheckpointError as error:
            number = error.errno if isinstance(error, CheckpointWriteError) else None
            answer = {
                "kind": "failed",
                "what": error.what,
                "meaning": error.meaning,
                "cure": error.cure,
                "errno": number,
                "is_healed": isinstance(error, CheckpointWriteError) and error.is_healed,
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
                "is_healed": False,
                "is_given_up": False,
            }
        finally:
            if lock is not None:
                lock.release()
            if keeper is not None:
                keeper.end()
        try:
            messages.send(self._channel, {"number": message["number"], **answer, "is_kept": is_kept})
        except OSError:
            # The trainer died meanwhile. The checkpoint is there nevertheless, and the next start finds it.
            return

    def _fulfil(self, order: SaveOrder, data: memoryview, patience: Patience, keep: Callable[[Part], None]) -> int:
        """Write, or only keep; gives the size of what is there then."""
        if order.on_disk:
            manifest = carry_out(order, data, patience, keep)
            return 0 if manifest is None else manifest.size_bytes
        part = complete_part(order, data)
        keep(part)
        return sum(file.size_bytes for file in part.files.values())


def main(channel_descriptor: int, *trainer: int) -> None:
    """Serve the trainer at the other end of the channel."""
    # A terminal's Ctrl-C and a scheduler's SIGTERM are for the trainer: what it has handed over is to be written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    WriterProcess(socket.socket(fileno=channel_descriptor), list(trainer)).run()
