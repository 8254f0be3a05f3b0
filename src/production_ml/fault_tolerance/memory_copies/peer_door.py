"""The keeper's door for other nodes: over TCP, for who knows its token; what comes in is verified before it is held."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader
from production_ml.fault_tolerance.checkpoint_format.verification import chunks_by_file
from production_ml.fault_tolerance.memory_copies.image_source import ImageSource
from production_ml.fault_tolerance.memory_copies.kept import KeptCopies, KeptCopy
from production_ml.fault_tolerance.memory_copies.record import CopyRecord, assemble_one, copy_name, decode_record
from production_ml.fault_tolerance.memory_copies.visitors import visitors
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.writer import messages

MOST_RECORD_BYTES: Final = 1 << 30
"""A record has about 200 bytes per tensor, and the state that is not tensors."""
STALL_SECONDS: Final = 30.0
"""After so long without a byte, the other side is taken to be lost."""
_MOST_HELLO_BYTES: Final = 1 << 10
_HELLO_SECONDS: Final = 5.0
"""For all of it: a byte now and then keeps nobody at the door."""
_MOST_VISITORS: Final = 64
"""Of those who have been let in."""
_MOST_AT_THE_DOOR: Final = 256
"""Of those who have not said the token yet; one more, and the one who has waited longest is turned away."""
_VISITORS_FAULTS: Final = (OSError, ValueError, LookupError, TypeError, MemoryError, RecursionError, CheckpointError)
"""Whatever a stranger sends, or a friend that dies, it ends the visit and nothing else."""
_MEMORY: Final = Path("/proc/meminfo")


class Door(NamedTuple):
    """How a keeper is reached from other nodes."""

    host: str
    port: int
    token: str
    """Ranks give it to each other over their store; it is in no log and no file."""


class _Visitor(socket.socket):
    """Who came to the door."""

    deadline_seconds: float | None = None
    """On the monotonic clock: nothing is received after that."""

    def recvmsg(self, *given: Any) -> Any:
        self._hurry()
        return super().recvmsg(*given)

    def recv_into(self, *given: Any) -> int:
        self._hurry()
        return super().recv_into(*given)

    def _hurry(self) -> None:
        if self.deadline_seconds is not None:
            left_seconds = self.deadline_seconds - time.monotonic()
            if left_seconds <= 0:
                raise TimeoutError("no token came in time")
            self.settimeout(left_seconds)


class PeerDoor(threading.Thread):
    """Takes in copies of another node's ranks, and gives them back to whoever comes for them after a loss.

    Args:
        host: The address that the other nodes reach this one by.
        copies: Where they are held.

    Raises:
        OSError: The address is not this host's.
    """

    def __init__(self, host: str, copies: KeptCopies) -> None:
        super().__init__(name="checkpoint-peers", daemon=True)
        self._copies = copies
        self._listener = socket.create_server((host, 0), family=_family(host), backlog=_MOST_VISITORS)
        self._visitors = threading.BoundedSemaphore(_MOST_VISITORS)
        self._waiting: OrderedDict[_Visitor, None] = OrderedDict()
        self._lock = threading.Lock()
        self.door = Door(host, int(self._listener.getsockname()[1]), secrets.token_hex(16))

    def run(self) -> None:
        """Serve until the process ends."""
        for accepted in visitors(self._listener):
            visitor = _Visitor(fileno=accepted.detach())
            self._make_way_for(visitor)
            try:
                threading.Thread(target=self._receive, args=(visitor,), daemon=True).start()
            except RuntimeError:  # no thread can be started now
                self._leave_the_door(visitor)
                visitor.close()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _make_way_for(self, visitor: _Visitor) -> None:
        """Let one more wait. Strangers can fill the door, but a friend, who is quick, never finds it shut."""
        with self._lock:
            if len(self._waiting) >= _MOST_AT_THE_DOOR:
                longest, _ = self._waiting.popitem(last=False)
                with contextlib.suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)  # its thread closes it
            self._waiting[visitor] = None

    def _leave_the_door(self, visitor: _Visitor) -> None:
        with self._lock:
            self._waiting.pop(visitor, None)

    def _receive(self, visitor: _Visitor) -> None:
        with visitor, contextlib.suppress(*_VISITORS_FAULTS):
            try:
                is_known = self._knows_the_token(visitor)
            finally:
                self._leave_the_door(visitor)
            if is_known:
                with self._visitors:
                    visitor.settimeout(STALL_SECONDS)
                    self._serve(visitor)

    def _knows_the_token(self, visitor: _Visitor) -> bool:
        visitor.deadline_seconds = time.monotonic() + _HELLO_SECONDS
        hello = messages.receive(visitor, _MOST_HELLO_BYTES)
        visitor.deadline_seconds = None
        return hello is not None and hmac.compare_digest(str(hello[0]["token"]).encode(), self.door.token.encode())

    def _serve(self, visitor: socket.socket) -> None:
        while (received := messages.receive(visitor, MOST_RECORD_BYTES)) is not None:
            asked = received[0]
            if asked["kind"] == "offer":
                self._take_in(visitor, asked)
            elif asked["kind"] == "fetch":
                self._give(visitor, asked)

    def _take_in(self, visitor: socket.socket, asked: dict[str, Any]) -> None:
        record = decode_record(asked["record"], step=0)
        self._copies.expect_replica(record.rank, held=asked["held"])
        image = receive_image(visitor, record)
        try:
            if image is not None:
                verify(record, image.descriptor)
        except DamagedCheckpointError:
            messages.send(visitor, {"kind": "damaged"})
            return
        descriptor = None if image is None else os.dup(image.descriptor)
        if image is not None:
            image.close()
        self._copies.add(KeptCopy.of(record, descriptor, is_replica=True))
        messages.send(visitor, {"kind": "stored"})

    def _give(self, visitor: socket.socket, asked: dict[str, Any]) -> None:
        with self._copies.borrow(asked["save_id"], asked["rank"]) as copy:
            if copy is None:
                messages.send(visitor, {"kind": "gone"})
                return
            messages.send(visitor, {"kind": "copy", "record": copy.record})
            if not asked["is_record_only"]:
                send_image(visitor, copy)


def send_image(channel: socket.socket, copy: KeptCopy) -> None:
    """Send the bytes of a copy; sendfile() does no harm where a trainer writes into the image meanwhile."""
    if copy.descriptor is not None and copy.size_bytes:
        with open(os.dup(copy.descriptor), "rb") as file:
            if channel.sendfile(file, 0, copy.size_bytes) != copy.size_bytes:
                raise ConnectionError("the image became shorter while it was sent")


def receive_image(channel: socket.socket, record: CopyRecord) -> ShardImage | None:
    """Receive the bytes of a copy; None where its rank holds no tensors.

    Raises:
        OSError: The other side is lost, or there is no memory for it.
    """
    if not record.part.files:
        return None
    if record.size_bytes > available_bytes():
        raise MemoryError(f"{record.size_bytes:,} bytes are not there")
    image = ShardImage()
    try:
        image.resize(record.size_bytes)
        _fill(channel, image.data[: record.size_bytes])
    except BaseException:
        image.close()
        raise
    return image


def _fill(channel: socket.socket, data: memoryview) -> None:
    while data:
        count = channel.recv_into(data)
        if not count:
            raise ConnectionError("the other side ended")
        data = data[count:]


def verify(record: CopyRecord, descriptor: int) -> None:
    """Compare every block of a copy with its hash.

    Raises:
        DamagedCheckpointError: The copy is not what was made.
    """
    manifest = assemble_one(record)
    for file, chunks in chunks_by_file(manifest).items():
        source = ImageSource(copy_name(record.step, file), os.dup(descriptor), record.size_bytes)
        with ShardReader(source, manifest.files[file], step=record.step) as reader:
            for name, dtype, chunk in chunks:
                reader.verify(name, dtype, chunk)


def available_bytes() -> int:
    """The memory that the kernel can give without swapping."""
    for line in _MEMORY.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
