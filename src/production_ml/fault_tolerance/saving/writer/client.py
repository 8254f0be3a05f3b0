"""The trainer's side of the writer process: started when it is first needed, and anew when it was killed."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import production_ml
from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.base import Claim
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.saving.commit import GivenUpError, give_up
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.patience import FAREWELL_SECONDS
from production_ml.fault_tolerance.saving.writer import messages
from production_ml.fault_tolerance.saving.writer.readable import await_readable

_LOG: Final = logging.getLogger(__name__)
_SOURCE_ROOT: Final = str(Path(production_ml.__file__).parent.parent)
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from production_ml.fault_tolerance.saving.writer.process import main; main(*map(int, sys.argv[2:]))"
)
_LOOK_SECONDS: Final = 0.2


_left_behind: Final[list[subprocess.Popen[bytes]]] = []
"""Keepers that are to outlive this process."""


@atexit.register
def _let_go() -> None:
    """Leave them to whoever inherits them: Popen has no word for that, and would warn of children that still run."""
    for process in _left_behind:
        process.returncode = process.poll() or 0


def _end(process: subprocess.Popen[bytes], channel: socket.socket, *, outlives: bool) -> None:
    # Shut down, not only closed: a forked worker may hold a copy of the descriptor.
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)
    channel.close()
    if outlives:
        _left_behind[:] = [left for left in (*_left_behind, process) if left.poll() is None]
    else:
        process.wait()


def _end_dropped(process: subprocess.Popen[bytes], channel: socket.socket, outlives: bool, owner_pid: int) -> None:
    """The end for a writer that nobody has closed and nobody can reach any more, so that no save is under way."""
    if owner_pid != os.getpid():
        # A fork's copy. What Popen and the socket would warn of is its parent's.
        channel.close()
        process.returncode = 0
        return
    if not threading.main_thread().is_alive():
        # A script may end without close(): its last save has been waited for. The process ends with the channel.
        channel.close()
        process.returncode = process.poll() or 0
        return
    _end(process, channel, outlives=outlives)
    # Last, as it may raise.
    warnings.warn(
        "A checkpoint manager was dropped without close(): had its last save failed, the log alone would tell. "
        "Call close(), or use it in a with statement.",
        ResourceWarning,
        stacklevel=2,
    )


class NoKeeperError(CheckpointWriteError):
    """Copies cannot be kept in memory here, which the log tells once: training and checkpoints on disk go on."""

    is_healed = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """What makes the process a keeper of copies in memory, which may outlive its trainer."""

    place: MeetingPlace
    local_rank: int
    newest: int
    """How many steps are kept."""
    peer_host: str | None = None
    """The address by which other nodes reach this one; None where there are none."""


class Writer:
    """Writes images in another process, one at a time. Used from one thread at a time.

    Args:
        keeping: Whether the process keeps what it is given for the run's next attempt.
    """

    def __init__(self, keeping: Keeping | None = None) -> None:
        self._keeping = keeping
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._dropped: weakref.finalize[..., Writer] | None = None
        self._image_sizes: dict[int, int] = {}
        self.kept: set[str] = set()
        """The ids of the saves that the process keeps in memory, and some that it has dropped since."""
        self._contents: ShardContents | None = None
        self._leave_within_seconds: float | None = None
        self._has_told_of_no_keeper = False
        self._orders = 0
        self._is_amid = False
        """Whether a message is on its way; it stays so where an exception, such as that of a Ctrl-C, came amid it."""
        self._has_order = False

    def prepare(self, image: ShardImage) -> None:
        """Start the process, if it is not there, and let it map the image, which may be one of several.

        Raises:
            CheckpointWriteError: No process can be started.
        """
        self._recover()
        if self._process is None or self._process.poll() is not None:
            self._start()
        slot = image.descriptor
        if self._channel is not None and self._image_sizes.get(slot) != len(image.data):
            with self._amid_messages():
                messages.send(self._channel, {"kind": "image", "slot": slot}, [slot])
            self._image_sizes[slot] = len(image.data)

    def transfers(self) -> dict[str, Any]:
        """How the process is reached from other nodes, and what became of the copy that was to be sent; see `Keeper`.

        Only to be asked while no save is under way.
        """
        self._recover()
        if self._channel is not None and self._keeping is not None:
            with contextlib.suppress(ConnectionError), self._amid_messages():
                number = self._next_number()
                messages.send(self._channel, {"kind": "transfers", "number": number})
                return self._answer_to(number, self._channel) or {}
        return {}

    def introduce(self, peer: Sequence[Any] | None, *, held: str | None) -> None:
        """Say to which keeper of another node copies are to be sent, and which save all peers hold already."""
        self._recover()
        if self._channel is not None:
            with contextlib.suppress(ConnectionError), self._amid_messages():
                messages.send(self._channel, {"kind": "introduce", "peer": peer, "held": held})

    def reuse(self, image: ShardImage, *, agreed: int, replicated: bool = False) -> None:
        """Say that an image is about to be written into, so that what it holds is kept no more.

        Where a save was interrupted, it returns when the process reads the image no more.

        Args:
            image: The image.
            agreed: How many steps of this training stand in for those of an earlier attempt.
            replicated: Whether peers hold one of them.
        """
        self._recover()
        if self._channel is not None and self._keeping is not None:
            # A process that was killed keeps nothing; the next one is told when it has something.
            with contextlib.suppress(ConnectionError), self._amid_messages():
                message = {"slot": image.descriptor, "agreed": agreed, "replicated": replicated}
                messages.send(self._channel, {"kind": "reuse", **message})

    def write(self, order: SaveOrder, image: ShardImage, lock: Claim | None) -> int:
        """Write, and return when the checkpoint is committed.

        Args:
            order: What to write.
            image: Where it is.
            lock: Rank 0's claim, which goes over to the writer.

        Returns:
            The size of the whole checkpoint in bytes on rank 0, and 0 on the others.

        Raises:
            NoKeeperError: It was to be kept in memory alone, and cannot be.
            CheckpointWriteError: There will be no such checkpoint.
        """
        self._has_order = False
        try:
            answer = self._await_written(order, image, lock)
        except BaseException as problem:
            # What the writer could not do it has told the other ranks itself; that it is gone it cannot tell. Where
            # only the waiting was interrupted, it goes on with what it has.
            if order.on_disk and not (self._is_amid and self._has_order):
                give_up(order, problem)
            raise
        finally:
            # Not when it begins: a script may have failed while what is written now was still being copied.
            self._leave_within_seconds = None
        if answer["kind"] == "no_keeper":
            raise self._no_keeper_error(answer)
        if answer["kind"] == "failed":
            kind = GivenUpError if answer["is_given_up"] else CheckpointWriteError
            error = kind(answer["what"], meaning=answer["meaning"], cure=answer["cure"])
            error.errno, error.is_healed = answer["errno"], answer["is_healed"]
            raise error
        return int(answer["size_bytes"])

    def _await_written(self, order: SaveOrder, image: ShardImage, lock: Claim | None) -> dict[str, Any]:
        try:
            self.prepare(image)
            with self._amid_messages():
                answer = self._ask(order, image, lock)
        except ConnectionError as problem:
            raise self._death(order) from problem
        if answer is None:
            raise self._death(order)
        if answer["is_kept"]:
            self.kept.add(order.save_id)
        return answer

    def _no_keeper_error(self, answer: dict[str, Any]) -> NoKeeperError:
        error = NoKeeperError(answer["what"], meaning=answer["meaning"], cure=answer["cure"])
        if not self._has_told_of_no_keeper:
            self._has_told_of_no_keeper = True
            _LOG.warning("%s", error)
        return error

    def leave_soon(self, within_seconds: float = FAREWELL_SECONDS) -> None:
        """The script has failed: do not wait long for ranks that may be gone. Another thread may say so."""
        self._leave_within_seconds = within_seconds

    def close(self) -> None:
        """Let the process end; it writes what it has first."""
        if self._dropped is not None:
            self._dropped.detach()
        if self._process is not None and self._channel is not None:
            _end(self._process, self._channel, outlives=self._outlives)
        self._process, self._channel = None, None
        self._image_sizes, self._contents, self._is_amid = {}, None, False

    @contextlib.contextmanager
    def _amid_messages(self) -> Iterator[None]:
        self._is_amid = True
        yield
        self._is_amid = False

    def _recover(self) -> None:
        """Where an exchange was cut short, end the process: what it answers next may be the answer to that one."""
        if not self._is_amid:
            return
        if self._process is not None and self._outlives:
            # It would never end by itself, and what it keeps is in the images that are about to be written into.
            self._process.kill()
            self._process.wait()
        self.close()
        self.kept.clear()

    @property
    def _outlives(self) -> bool:
        return self._keeping is not None and self._keeping.place.outlives_this_process

    def _next_number(self) -> int:
        self._orders += 1
        return self._orders

    def _start(self) -> None:
        self.close()
        mine, theirs = socket.socketpair()
        with theirs, _own_process() as own:
            arguments = (_SOURCE_ROOT, *map(str, (theirs.fileno(), *own)))
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module, run by our own interpreter
                    (sys.executable, "-P", "-c", _START, *arguments),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *own],
                    # A launcher that kills the trainer's group leaves the writer time to finish.
                    start_new_session=True,
                )
            except OSError as problem:
                mine.close()
                raise CheckpointWriteError(
                    f"The process that writes checkpoints cannot be started ({problem.strerror}).", meaning=UNCHANGED
                ) from problem
        self._channel = mine
        self._dropped = weakref.finalize(self, _end_dropped, self._process, mine, self._outlives, os.getpid())
        self.kept.clear()
        if self._keeping is not None:
            place = self._keeping.place
            message = {
                "kind": "keep_copies",
                "path": str(place.path),
                "owner_pid": place.owner_pid,
                "owner_start": place.owner_start,
                "trainer_pid": os.getpid(),
                "local_rank": self._keeping.local_rank,
                "newest": self._keeping.newest,
                "peer_host": self._keeping.peer_host,
            }
            messages.send(mine, message)

    def _ask(self, order: SaveOrder, image: ShardImage, lock: Claim | None) -> dict[str, Any] | None:
        channel = self._channel
        assert channel is not None  # noqa: S101 - prepare() has made it
        if self._contents is not order.contents:
            messages.send(channel, {"kind": "contents", "holdings": order.contents.to_json()})
            self._contents = order.contents
        number = self._next_number()
        message = {
            "kind": "save",
            "number": number,
            "directory": order.directory.url,
            "step": order.step,
            "save_id": order.save_id,
            "rank": order.rank,
            "world_size": order.world_size,
            "metrics": order.metrics,
            "values": order.values,
            "rank_values": order.rank_values,
            "on_disk": order.on_disk,
            "slot": image.descriptor,
            "is_sent": order.is_sent,
        }
        if lock is None or lock.descriptor is None:
            messages.send(channel, message)
            self._has_order = True
        else:
            messages.send(channel, message, [lock.descriptor])
            self._has_order = True
            lock.hand_over()
        return self._await_answer(number, channel)

    def _await_answer(self, number: int, channel: socket.socket) -> dict[str, Any] | None:
        has_told = False
        while not await_readable([channel.fileno()], _LOOK_SECONDS):
            if self._leave_within_seconds is None and not threading.main_thread().is_alive():
                self._leave_within_seconds = FAREWELL_SECONDS
            if self._leave_within_seconds is not None and not has_told:
                messages.send(channel, {"kind": "leave_soon", "seconds": self._leave_within_seconds})
                has_told = True
        return self._answer_to(number, channel)

    def _answer_to(self, number: int, channel: socket.socket) -> dict[str, Any] | None:
        """The answer to that question and no other; None when the process is gone."""
        while (received := messages.receive(channel)) is not None:
            if received[0]["number"] == number:
                return received[0]
        return None

    def _death(self, order: SaveOrder) -> CheckpointWriteError:
        self._is_amid = False
        code = None if self._process is None else self._process.wait()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return CheckpointWriteError(
            f"The checkpoint of step {order.step} was not written: the process that writes {how}.",
            meaning=UNCHANGED,
            cure="Where the kernel killed it for want of memory, its log says so; the next save starts another.",
        )


@contextlib.contextmanager
def _own_process() -> Iterator[list[int]]:
    """Something that the writer can wait on until this process is dead, even if that is so before the writer is up."""
    try:
        descriptor = os.pidfd_open(os.getpid())
    except OSError:
        # Before Linux 5.3. The end of the channel tells too, unless a fork holds it.
        yield []
        return
    try:
        yield [descriptor]
    finally:
        os.close(descriptor)
