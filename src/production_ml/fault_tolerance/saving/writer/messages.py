"""Messages between a trainer and the process that writes for it: JSON with a length before it, and descriptors."""

from __future__ import annotations

import array
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

_LENGTH: Final = struct.Struct("<Q")
_MOST_DESCRIPTORS: Final = 2


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message.

    Raises:
        OSError: The other side is gone.
    """
    encoded = json.dumps(message).encode()
    prefix = _LENGTH.pack(len(encoded))
    if descriptors:
        rights = array.array("i", descriptors)
        channel.sendmsg([prefix], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    else:
        channel.sendall(prefix)
    channel.sendall(encoded)


def receive(channel: socket.socket, most_bytes: int | None = None) -> tuple[dict[str, Any], list[int]] | None:
    """Wait for one message and the descriptors that came with it; None when the other side is gone.

    Raises:
        ValueError: It is longer than `most_bytes`, or no message.
    """
    space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
    descriptors: list[int] = []
    try:
        prefix, rights, _, _ = channel.recvmsg(_LENGTH.size, space, socket.MSG_CMSG_CLOEXEC)
        for _, kind, data in rights:
            if kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                descriptors.extend(received)
        prefix += _read(channel, _LENGTH.size - len(prefix)) if prefix else b""
        if len(prefix) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(prefix)
        if most_bytes is not None and length > most_bytes:
            raise ValueError(length)
        encoded = _read(channel, length)
    except ConnectionError:
        return None
    return None if len(encoded) < length else (json.loads(encoded), descriptors)


def _read(channel: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = channel.recv_into(view[done:])
        if not count:
            break
        done += count
    return bytes(view[:done])
