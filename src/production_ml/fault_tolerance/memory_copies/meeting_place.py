"""Where the keepers of a run listen on this host: a directory that is this user's alone, named for who owns the run."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import CheckpointError
from production_ml.monitoring.run_directory import process_start
from production_ml.storage.hashing import hash_bytes

_NAME: Final = re.compile(r"(\d+)-(\d+)-(\d+)-[0-9a-f]+")
_SUFFIX: Final = ".sock"
_BACKLOG: Final = 64
_TRIES: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MeetingPlace:
    """The directory of sockets of one run's keepers for one checkpoint directory."""

    path: Path
    owner_pid: int
    """Of the process whose life is the run's life on this host: keepers live no longer."""
    owner_start: int
    """When it started; with the pid it names a process for good."""

    @classmethod
    def of(cls, checkpoints: str) -> MeetingPlace:
        """The run that this process belongs to.

        The pid namespace is a part of the name, for containers may share a temporary directory and number alike.
        """
        owner_pid = DistributedEnv.read().owner_pid
        owner_start = process_start(owner_pid)
        digest = hash_bytes(os.fsencode(checkpoints if "://" in checkpoints else str(Path(checkpoints).resolve())))
        name = f"{_pid_namespace()}-{owner_pid}-{owner_start}-{digest[:16]}"
        return cls(path=_base() / name, owner_pid=owner_pid, owner_start=owner_start)

    @property
    def outlives_this_process(self) -> bool:
        """Whether somebody may come after this process; a script without a launcher is its own owner."""
        return self.owner_pid != os.getpid()

    def watch_owner(self) -> int | None:
        """A descriptor that is ready when the owner has ended; None where it has already."""
        try:
            descriptor = os.pidfd_open(self.owner_pid)
        except OSError:
            return None
        if process_start(self.owner_pid) != self.owner_start:
            os.close(descriptor)
            return None
        return descriptor

    def listen(self) -> tuple[socket.socket, str]:
        """Listen there under a name of this process's own, which is given too.

        Raises:
            OSError: It cannot.
            CheckpointError: The directory is another user's.
        """
        _own_directory(self.path.parent)
        sweep(self.path.parent)
        name = f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        for _ in range(_TRIES):
            # The last keeper of an earlier attempt may take the directory away at any moment.
            with contextlib.suppress(FileNotFoundError):
                _own_directory(self.path)
                return _listener(self.path, name), name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def sockets(self) -> list[Path]:
        """The keepers there, dead ones perhaps among them."""
        try:
            return sorted(path for path in self.path.iterdir() if path.suffix == _SUFFIX)
        except OSError:
            return []

    def leave(self, name: str) -> None:
        """Take a keeper's name away, and the directory after the last."""
        with contextlib.suppress(OSError):
            (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()


def _listener(directory: Path, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory) as short:
            # Until it listens it has another name: whoever knocked before would take it for a dead keeper's.
            listener.bind(f"{short}/.{name}.new")
            listener.listen(_BACKLOG)
            os.rename(f"{short}/.{name}.new", f"{short}/{name}")  # noqa: PTH104 - as short as bind() needs it
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path, timeout_seconds: float) -> socket.socket:
    """A connection to a keeper.

    Raises:
        OSError: None listens there.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(timeout_seconds)
        with _short(path.parent) as directory:
            channel.connect(f"{directory}/{path.name}")
    except BaseException:
        channel.close()
        raise
    return channel


def sweep(base: Path) -> None:
    """Clear away what keepers left behind that were killed together with their run's owner."""
    for path in base.iterdir():
        named = _NAME.fullmatch(path.name)
        if named is None or int(named[1]) != _pid_namespace():
            continue
        if process_start(int(named[2])) != int(named[3]):
            with contextlib.suppress(OSError):
                for left in path.iterdir():
                    left.unlink(missing_ok=True)
                path.rmdir()


def _base() -> Path:
    """The user's own directory for such things, or one like it; both are gone after a reboot."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and os.access(given, os.W_OK | os.X_OK):
        return Path(given) / "production-ml"
    return Path(tempfile.gettempdir()) / f"production-ml-{os.getuid()}"


def _own_directory(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise CheckpointError(
            f"{path}: is not a directory of this user alone.",
            meaning="No copies of checkpoints are kept in memory; training and checkpoints on disk go on.",
            cure="Remove it, or set XDG_RUNTIME_DIR to a directory of your own.",
        )


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The directory under a short name: that of a socket may have no more than 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
