"""A save under way in an object store: who makes it, what each rank has put there, and whether its makers are dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.fault_tolerance.checkpoint_format.directory_save import shard_name
from production_ml.fault_tolerance.checkpoint_format.save_lock import SILENCE_SECONDS
from production_ml.storage.base import ObjectStore, StoredObject

OWNER: Final = "owner.json"
PART: Final = "part-{:05d}.json"


@dataclass(frozen=True, slots=True)
class ObjectSave:
    """Where the ranks of one save put what they have. Nothing here is a checkpoint before the manifest names it.

    The ranks ask for each other's objects by name and never by a listing, which may be old.
    """

    store: ObjectStore
    step: int
    save_id: str

    @property
    def folder(self) -> str:
        """The folder that no other save writes to."""
        return f"step-{self.step:08d}/{self.save_id}"

    def claim(self) -> SaveClaim:
        """Say that this process makes the save.

        Raises:
            OSError: The store does not take it.
        """
        self.store.put(f"{self.folder}/{OWNER}", [json.dumps(_this_process()).encode()])
        return SaveClaim(self)

    def write_shard(self, rank: int, image: memoryview, size_bytes: int) -> str:
        """Store a rank's shard durably, and give its name for the manifest (`ChunkEntry.file`).

        Raises:
            OSError: The store does not take it.
        """
        if rank == 0:
            # The process that writes may be another than the one that began, and outlive it.
            self.claim()
        name = shard_name(rank)
        self.store.put(f"{self.folder}/{name}", [image[:size_bytes]])
        return f"{self.save_id}/{name}"

    def write_part(self, rank: int, document: bytes) -> None:
        """Tell rank 0 that a rank's shard is stored, or why it never will be.

        Raises:
            OSError: The store does not take it.
        """
        self.store.put(f"{self.folder}/{PART.format(rank)}", [document])

    def read_parts(self, ranks: Iterable[int]) -> dict[int, bytes]:
        """What those of `ranks` have told that have told something.

        Raises:
            OSError: The store does not answer.
        """
        found = {}
        for rank in ranks:
            with contextlib.suppress(FileNotFoundError):
                found[rank] = self.store.get(f"{self.folder}/{PART.format(rank)}")
        return found

    def withdraw(self, rank: int) -> None:
        """Take back the shard that a rank has stored.

        Raises:
            OSError: The store does not answer.
        """
        self.store.delete([f"{self.folder}/{shard_name(rank)}"])

    def is_claimed(self) -> bool:
        """Whether rank 0 goes on with it; not any more once it is committed or given up.

        Raises:
            OSError: The store does not answer.
        """
        try:
            self.store.size(f"{self.folder}/{OWNER}")
        except FileNotFoundError:
            return False
        return True

    def is_held_here(self) -> bool:
        """Whether a process of this host is surely at work on it."""
        try:
            return self._is_owner_alive() is True
        except OSError:
            return False

    def is_dead(self, objects: Iterable[StoredObject]) -> bool:
        """Whether nobody makes it any more: its process is gone, or `objects`, all it has, are a day old.

        Raises:
            OSError: The store does not answer.
        """
        is_alive = self._is_owner_alive()
        if is_alive is not None:
            return not is_alive
        moments = [stored.modified_at for stored in objects]
        known = [moment for moment in moments if moment is not None]
        # The clocks of the store and of this host may differ, but hardly by a day.
        return len(known) == len(moments) > 0 and SYSTEM_CLOCK.wall_seconds() - max(known) > SILENCE_SECONDS

    def _is_owner_alive(self) -> bool | None:
        """None where it cannot be told here: nobody claims it, or a process of another host does."""
        try:
            owner = json.loads(self.store.get(f"{self.folder}/{OWNER}"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(owner, dict) or _machine(owner) != _machine(_this_process()):
            return None
        started = _started(owner.get("pid"))
        return started is not None and started == owner.get("started")


class SaveClaim:
    """Rank 0's word that a save is under way: an object that names the process, so it ends when the process does."""

    def __init__(self, save: ObjectSave) -> None:
        self.descriptor: int | None = None
        """There is none: the process that writes claims the save in its own name."""
        self._save = save

    def hand_over(self) -> None:
        """Nothing to do, as there is no descriptor."""

    def release(self) -> None:
        """Let go; where the store does not answer, the claim ends with the process."""
        with contextlib.suppress(OSError):
            self._save.store.delete([f"{self._save.folder}/{OWNER}"])


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), **_kernel()}


def _kernel() -> dict[str, str]:
    """What tells whose process numbers these are: containers share host names, and each counts from 1."""
    facts = {}
    with contextlib.suppress(OSError):
        facts["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        facts["pid_namespace"] = str(Path("/proc/self/ns/pid").readlink())
    return facts


def _machine(owner: dict[str, Any]) -> tuple[object, ...] | None:
    facts = tuple(owner.get(name) for name in ("host", "boot_id", "pid_namespace"))
    return None if None in facts else facts


def _started(pid: Any) -> int | None:
    """When a process started, in the kernel's ticks, which tells it from a later one of its number; None if gone."""
    try:
        status = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, TypeError, ValueError):
        return None
    # The name of the program may hold spaces and parentheses; the start is the 20th number after it.
    return int(status.rpartition(")")[2].split()[19])
