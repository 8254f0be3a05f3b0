"""A gate in front of system calls: each one that touches a directory waits here, to go on, to fail, or to be the last.

The kernel offers it (seccomp user notification, Linux 5.9 or newer, no privilege needed): calls come one by one in one
order, over all threads and processes that a process starts. So "the n-th call" names the same moment however the work
is spread, which a tracer that counts per thread cannot say.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X86_64: Final = {
    "read": 0, "write": 1, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "preadv": 295, "pwritev": 296,
    "pwritev2": 328, "open": 2, "creat": 85, "openat": 257, "fsync": 74, "fdatasync": 75, "sync_file_range": 277,
    "ftruncate": 77, "truncate": 76, "fallocate": 285, "copy_file_range": 326, "sendfile": 40,
    "rename": 82, "renameat": 264, "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
    "unlink": 87, "unlinkat": 263, "mkdir": 83, "mkdirat": 258, "rmdir": 84,
}  # fmt: skip
_AARCH64: Final = {
    "read": 63, "write": 64, "pread64": 67, "pwrite64": 68, "readv": 65, "writev": 66, "preadv": 69, "pwritev": 70,
    "pwritev2": 287, "openat": 56, "fsync": 82, "fdatasync": 83, "sync_file_range": 84, "ftruncate": 46,
    "truncate": 45, "fallocate": 47, "copy_file_range": 285, "sendfile": 71, "renameat": 38, "renameat2": 276,
    "linkat": 37, "symlinkat": 36, "unlinkat": 35, "mkdirat": 34,
}  # fmt: skip
_NUMBERS: Final = _X86_64 if platform.machine() == "x86_64" else _AARCH64
_NAMES: Final = {number: name for name, number in _NUMBERS.items()}

READS: Final = frozenset({"read", "pread64", "readv", "preadv"})
DATA_WRITES: Final = frozenset(
    {"write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile", "ftruncate", "fallocate"}
)
CHANGES: Final = frozenset(_NUMBERS) - READS
"""Every call that writes, makes durable, names, renames or removes. An open counts where it may create."""

_BY_DESCRIPTOR: Final = READS | DATA_WRITES | {"fsync", "fdatasync", "sync_file_range"}
# Which argument names the target: copy_file_range writes to its third argument, all others to their first.
_DESCRIPTOR_ARGUMENT: Final = {"copy_file_range": 2}
# A path argument may follow the descriptor of the directory that it starts from.
_AFTER_DIRECTORY: Final = {"openat", "renameat", "renameat2", "linkat", "unlinkat", "mkdirat"}
_PATH_ARGUMENT: Final = {"symlink": 1, "symlinkat": 2}
_DIRECTORY_ARGUMENT: Final = {"symlinkat": 1}

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_GO_ON: Final = 1
_AT_FDCWD: Final = -100


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that waits at the gate."""

    number: int
    """How many touched the directory before it, plus one."""
    name: str
    path: str
    process: int
    """The process that makes it."""
    target: str = ""
    """The new name, where it renames."""


Decision = Callable[[Call], int]
"""Answers the error number that the call fails with, 0 to let it go on. It may kill, too."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def stand_behind_gate(names: frozenset[str], channel: socket.socket) -> None:
    """From now on calls of `names` by this process and all that it starts wait; the gate's keeper gets the descriptor.

    Raises:
        OSError: The kernel does not offer it.
    """
    numbers = sorted(_NUMBERS[name] for name in names if name in _NUMBERS)
    load_word, jump_if_equal, answer = 0x20, 0x15, 0x06
    allow, ask = 0x7FFF0000, 0x7FC00000
    code = [
        _Instruction(load_word, 0, 0, 4),
        _Instruction(jump_if_equal, 1, 0, _ARCHITECTURE[platform.machine()]),
        _Instruction(answer, 0, 0, allow),
        _Instruction(load_word, 0, 0, 0),
    ]
    for index, number in enumerate(numbers):
        code.append(_Instruction(jump_if_equal, len(numbers) - index, 0, number))
    code += [_Instruction(answer, 0, 0, allow), _Instruction(answer, 0, 0, ask)]
    program = _Program(len(code), (_Instruction * len(code))(*code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS: what makes filters safe for everybody
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_NEW_LISTENER
    descriptor = libc.syscall(_SECCOMP[platform.machine()], 1, 8, ctypes.byref(program))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification was refused")
    socket.send_fds(channel, [b"gate"], [descriptor])
    os.close(descriptor)


class Gate:
    """The keeper's side.

    Args:
        descriptor: What `stand_behind_gate` sent.
        directory: Calls that touch nothing in it pass unseen.
    """

    def __init__(self, descriptor: int, directory: Path) -> None:
        self._descriptor = descriptor
        self._directory = str(directory)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.calls: list[Call] = []

    def keep(
        self, decide: Decision, *, deadline_seconds: float, is_enough: Callable[[float], bool] | None = None
    ) -> bool:
        """Answer until the last process behind the gate is gone; False where it still lives at the deadline.

        Args:
            decide: Asked for each call that touches the directory.
            deadline_seconds: On the monotonic clock.
            is_enough: Told how long no such call came; True ends the keeping before the processes end.
        """
        last_seconds = time.monotonic()
        while (now := time.monotonic()) < deadline_seconds:
            if is_enough is not None and is_enough(now - last_seconds):
                return False
            ready = self._poll.poll(50)
            if not ready:
                continue
            if not ready[0][1] & select.POLLIN:
                return True
            if self._answer_one(decide):
                last_seconds = time.monotonic()
        return False

    def close(self) -> None:
        """Whoever still waits at the gate now fails with ENOSYS."""
        os.close(self._descriptor)

    def _answer_one(self, decide: Decision) -> bool:
        buffer = bytearray(80)
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.EINTR):  # it was killed while it waited
                return False
            raise
        ticket, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", buffer)
        name = _NAMES[number]
        refusal, is_ours = 0, False
        paths = [path for path in _touched(name, thread, arguments) if f"{path}/".startswith(f"{self._directory}/")]
        if paths:
            is_ours = True
            relative = [path[len(self._directory) + 1 :] for path in (*paths, "")]
            call = Call(len(self.calls) + 1, name, relative[0], _process_of(thread), relative[1])
            self.calls.append(call)
            refusal = decide(call)
        answer = struct.pack("=QqiI", ticket, 0, -refusal, 0 if refusal else _GO_ON)
        with contextlib.suppress(OSError):  # it is dead
            fcntl.ioctl(self._descriptor, _SEND, answer)
        return is_ours


def _touched(name: str, thread: int, arguments: list[int]) -> Iterator[str]:
    try:
        if name in _BY_DESCRIPTOR:
            yield _path_of(thread, arguments[_DESCRIPTOR_ARGUMENT.get(name, 0)])
            return
        if name in ("open", "openat") and not _may_create(arguments[2 if name == "openat" else 1]):
            return
        position = _PATH_ARGUMENT.get(name, 1 if name in _AFTER_DIRECTORY else 0)
        yield _named(thread, arguments, position, _DIRECTORY_ARGUMENT.get(name, 0 if position else None))
        if name == "rename":
            yield _named(thread, arguments, 1, None)
        elif name.startswith("rename"):
            yield _named(thread, arguments, 3, 2)
    except OSError:  # it died meanwhile, or names what is not there
        return


def _named(thread: int, arguments: list[int], position: int, directory_position: int | None) -> str:
    path = _text_at(thread, arguments[position])
    if not path.startswith("/"):
        start = _AT_FDCWD if directory_position is None else arguments[directory_position]
        path = f"{_path_of(thread, start)}/{path}"
    return os.path.normpath(path)


def _may_create(flags: int) -> bool:
    return bool(flags & os.O_CREAT)


def _path_of(thread: int, descriptor: int) -> str:
    if ctypes.c_int(descriptor & 0xFFFFFFFF).value == _AT_FDCWD:
        return str(Path(f"/proc/{thread}/cwd").readlink())
    return str(Path(f"/proc/{thread}/fd/{descriptor}").readlink())


def _text_at(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while b"\0" not in found and len(found) < 4096:
            # Never over the end of a page: the next may not be mapped.
            piece = memory.read(4096 - (address + len(found)) % 4096)
            if not piece:
                break
            found += piece
    return found.split(b"\0", 1)[0].decode(errors="replace")


def _process_of(thread: int) -> int:
    with (
        contextlib.suppress(OSError),  # it died meanwhile
        open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as status,
    ):
        for line in status:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return thread
