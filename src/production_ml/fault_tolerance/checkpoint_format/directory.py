"""The names in a checkpoint directory, and the steps that change them: commit, quarantine, removal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    MANIFEST_FILE,
    Manifest,
    encode_manifest,
    read_manifest,
)
from production_ml.storage.durable import fsync_directory, write_durably

QUARANTINE: Final = "quarantine"
LOCK_FILE: Final = "save.lock"
_COMMITTED: Final = re.compile(r"step-(\d{8,})")
_INCOMPLETE: Final = ".incomplete-"
_REPLACED: Final = ".replaced-"
_REMOVED: Final = ".removed-"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a retention policy looks at."""

    step: int
    metrics: Mapping[str, float]
    created_at: float
    size_bytes: int = 0


class SaveLock:
    """Held by rank 0 while a save is under way: the kernel lets go of it when the process dies, however it dies."""

    def __init__(self, written: Path) -> None:
        self._descriptor = os.open(written / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        # On a file system without locks no save can be told dead, and leftovers stay: better than losing a live one.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let go. Unlocked on purpose, not by closing alone: a forked worker may hold a copy of the descriptor."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


class CheckpointDirectory:
    """A directory of checkpoints. `step-00000300/` is committed; what begins with a dot is not, yet or any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[int, int, int], CheckpointInfo] = {}

    def committed(self, step: int) -> Path:
        """Where the checkpoint of `step` lives once it is committed."""
        return self.path / f"step-{step:08d}"

    def incomplete(self, step: int, save_id: str) -> Path:
        """Where the ranks write the checkpoint of `step` in the save of that id."""
        return self.path / f"{_INCOMPLETE}step-{step:08d}-{save_id}"

    def begin(self, step: int, save_id: str) -> SaveLock:
        """Make the place where the ranks write, and hold it as this process's own."""
        self.path.mkdir(parents=True, exist_ok=True)
        written = self.incomplete(step, save_id)
        written.mkdir()
        return SaveLock(written)

    def steps(self) -> list[int]:
        """The committed steps, oldest first. Says nothing yet about their health."""
        if not self.path.is_dir():
            return []
        names = (_COMMITTED.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def manifest(self, step: int) -> Manifest:
        """The verified manifest of `step`.

        Raises:
            DamagedCheckpointError: It is missing or damaged.
            CheckpointError: It cannot be read for another reason, such as a newer format.
        """
        return read_manifest(self.committed(step) / MANIFEST_FILE, step=step)

    def infos(self) -> list[CheckpointInfo]:
        """The checkpoints whose manifests are sound, oldest first. Each manifest is read once and then remembered."""
        known: dict[tuple[int, int, int], CheckpointInfo] = {}
        for step in self.steps():
            try:
                status = (self.committed(step) / MANIFEST_FILE).stat()
                key = (step, status.st_ino, status.st_mtime_ns)
                known[key] = self._known.get(key) or _info(self.manifest(step))
            except (CheckpointError, OSError):
                continue
        self._known = known
        return list(known.values())

    def commit(self, written: Path, manifest: Manifest) -> None:
        """Turn a directory whose shards are all durable into a checkpoint."""
        write_durably(written / MANIFEST_FILE, encode_manifest(manifest))
        fsync_directory(written)
        target = self.committed(manifest.step)
        replaced = self.path / written.name.replace(_INCOMPLETE, _REPLACED)
        if target.exists():
            # A run that started anew in an old directory reaches the step again; rename() takes no full directory.
            # A crash between the two renames is mended by the next start, which puts the old one back.
            target.rename(replaced)
        try:
            written.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
        # Only now: without its lock a save looks dead, and another start might clear it away.
        (target / LOCK_FILE).unlink(missing_ok=True)
        # rename() alone is not durable: until the directory is fsynced, a power cut can bring back the old listing.
        fsync_directory(self.path)
        shutil.rmtree(replaced, ignore_errors=True)

    def quarantine(self, step: int, reason: Mapping[str, Any]) -> Path:
        """Move a damaged checkpoint out of the way and keep it: it may be the evidence against a disk."""
        source = self.committed(step)
        holder = self.path / QUARANTINE
        holder.mkdir(exist_ok=True)
        stamp = iso_utc(SYSTEM_CLOCK.wall_seconds()).replace(":", "")
        target = holder / f"{source.name}.{stamp}"
        source.rename(target)
        if target.is_dir():
            (target / "reason.json").write_text(json.dumps(dict(reason), indent=2) + "\n")
        fsync_directory(self.path)
        return target

    def remove(self, step: int) -> None:
        """Delete a checkpoint so that a crash on the way leaves nothing that looks like one."""
        self._remove(self.committed(step))

    def abandon(self, written: Path) -> None:
        """Delete what a failed save wrote. The name goes first: ranks still at work see at once that it ended."""
        if written.exists():
            self._remove(written)

    def _remove(self, path: Path) -> None:
        doomed = self.path / f"{_REMOVED}{path.name.lstrip('.')}"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Clear away what interrupted saves and removals left behind; saves of living processes are not touched."""
        for replaced in self.path.glob(f"{_REPLACED}*"):
            self._settle_replaced(replaced)
        for leftover in self.path.glob(f"{_INCOMPLETE}*"):
            if not _is_live(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.path.glob(f"{_REMOVED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _settle_replaced(self, replaced: Path) -> None:
        """Put a checkpoint back whose successor never came; delete it where the successor is there."""
        if _is_live(self.path / replaced.name.replace(_REPLACED, _INCOMPLETE)):
            return
        original = self.path / replaced.name.removeprefix(_REPLACED).rpartition("-")[0]
        if original.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            return
        # On a file system that became read-only there is still a checkpoint to load.
        with contextlib.suppress(OSError):
            replaced.rename(original)


def _is_live(written: Path) -> bool:
    try:
        descriptor = os.open(written / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _info(manifest: Manifest) -> CheckpointInfo:
    return CheckpointInfo(manifest.step, manifest.metrics, manifest.created_at, manifest.size_bytes)
