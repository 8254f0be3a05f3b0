"""The names in a checkpoint directory, and the steps that change them: commit, quarantine, removal."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.errors import CheckpointError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointInfo
from production_ml.fault_tolerance.checkpoint_format.byte_source import FileSource
from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave, fresh_listing
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestSummary,
    encode_manifest,
    read_manifest,
    read_save_id,
    read_summary,
)
from production_ml.fault_tolerance.checkpoint_format.misnamed import Misnamed, find_misnamed, put_back_misnamed
from production_ml.fault_tolerance.checkpoint_format.read_lease import is_being_read, read_lease, removal_claim
from production_ml.fault_tolerance.checkpoint_format.save_lock import (
    LOCK_FILE,
    SaveLock,
    is_dead,
    is_held,
    is_of_this_process,
)
from production_ml.storage.durable import fsync_directory, make_directory_durably, write_durably

QUARANTINE: Final = "quarantine"
_COMMITTED: Final = re.compile(r"step-(\d{8,})")
_INCOMPLETE: Final = ".incomplete-"
_REPLACED: Final = ".replaced-"
_REMOVED: Final = ".removed-"


_ManifestKey = tuple[int, int, int]
"""A step with the inode and the time of its manifest: another save of the step has another key."""


class CheckpointDirectory:
    """A directory of checkpoints. `step-00000300/` is committed; what begins with a dot is not, yet or any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[_ManifestKey, ManifestSummary] = {}
        self._put_back: set[int] = set()
        """Steps whose names this process mended: a person should see them before they go."""

    @property
    def url(self) -> str:
        """Where they are kept, for messages and for another process."""
        return str(self.path.absolute())

    def committed(self, step: int) -> Path:
        """Where the checkpoint of `step` lives once it is committed."""
        return self.path / f"step-{step:08d}"

    def incomplete(self, step: int, save_id: str) -> DirectorySave:
        """Where the ranks write the checkpoint of `step` in the save of that id."""
        return DirectorySave(self.path / f"{_INCOMPLETE}step-{step:08d}-{save_id}")

    def begin(self, step: int, save_id: str) -> SaveLock:
        """Make the place where the ranks write, and hold it as this process's own.

        Raises:
            OSError: The file system does not take it.
        """
        make_directory_durably(self.path)
        written = self.incomplete(step, save_id).path
        written.mkdir()
        try:
            return SaveLock(written)
        except BaseException:
            # Without a lock that names its host it would be taken for a save that may be alive, and stay for a day.
            with contextlib.suppress(OSError):
                written.rmdir()
            raise

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

    def identity(self, step: int) -> tuple[int, int] | None:
        """What tells the checkpoint of `step` from another that takes its name later; None where there is none."""
        try:
            status = self.committed(step).lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def infos(self) -> list[CheckpointInfo]:
        """The checkpoints whose manifests are sound, oldest first. Each manifest is read once and then remembered."""
        known: dict[_ManifestKey, ManifestSummary] = {}
        for step in self.steps():
            try:
                key = self._manifest_key(step)
                known[key] = self._known.get(key) or self._summary(step)
            except (CheckpointError, OSError):
                continue
        self._known = known
        return [CheckpointInfo.of(summary) for summary in known.values()]

    def is_whole(self, step: int) -> bool:
        """Whether the checkpoint of `step` has a sound manifest, and each file that it names at its size.

        It reads no tensor: what it finds whole may still have a flipped bit, which only `verify_checkpoint` finds.
        """
        try:
            files = (self._known.get(self._manifest_key(step)) or self._summary(step)).files
            path = self.committed(step)
            return all((path / name).stat().st_size == entry.size_bytes for name, entry in files.items())
        except (CheckpointError, OSError):
            return False

    def _summary(self, step: int) -> ManifestSummary:
        return read_summary(self.committed(step) / MANIFEST_FILE, step=step)

    def _manifest_key(self, step: int) -> _ManifestKey:
        status = (self.committed(step) / MANIFEST_FILE).stat()
        return step, status.st_ino, status.st_mtime_ns

    def source(self, step: int, file: str) -> FileSource:
        """The bytes of a shard that the manifest of `step` names.

        Raises:
            DamagedCheckpointError: It is missing, or the disk cannot read it.
            CheckpointError: The system refuses to read it.
        """
        return FileSource(self.committed(step) / file, step=step)

    def reading(self, step: int) -> contextlib.AbstractContextManager[bool]:
        """Within it the checkpoint of `step` is not removed, as far as leases reach (see `read_lease`)."""
        return read_lease(self.committed(step))

    def is_being_read(self, step: int) -> bool:
        """Whether a process holds a lease on the checkpoint of `step`."""
        return is_being_read(self.committed(step))

    def commit(self, save: DirectorySave, manifest: Manifest) -> None:
        """Turn a directory whose shards are all durable into a checkpoint."""
        written = save.path
        save.clear_parts(manifest.world_size)
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
        self._put_back.discard(manifest.step)
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
        # The new name before the old one's absence: a power cut in between must not leave it without either.
        fsync_directory(holder)
        fsync_directory(self.path)
        if target.is_dir():
            write_durably(target / "reason.json", json.dumps(dict(reason), indent=2).encode() + b"\n")
            fsync_directory(target)
        return target

    def remove(self, step: int) -> bool:
        """Delete a checkpoint so that a crash on the way leaves nothing that looks like one.

        Returns:
            False where it stays because it is being read, or was found under another name by this process.
        """
        if step in self._put_back:
            return False
        path = self.committed(step)
        with removal_claim(path) as is_free:
            doomed = self._without_its_name(path) if is_free else None
        # Only now, with the claim given back: a reader that waits for it learns at once that the name is gone.
        if doomed is not None:
            shutil.rmtree(doomed, ignore_errors=True)
        return is_free

    def is_committed(self, save: DirectorySave) -> bool:
        """Whether a save has become the checkpoint of its step."""
        name, _, save_id = save.path.name.removeprefix(_INCOMPLETE).rpartition("-")
        if name not in fresh_listing(self.path):
            return False
        return read_save_id(self.path / name / MANIFEST_FILE) == save_id

    def abandon(self, save: DirectorySave) -> None:
        """Delete what a failed save wrote. The name goes first: ranks still at work see at once that it ended."""
        if save.path.exists():
            shutil.rmtree(self._without_its_name(save.path), ignore_errors=True)

    def _without_its_name(self, path: Path) -> Path:
        doomed = self.path / f"{_REMOVED}{path.name.lstrip('.')}"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        return doomed

    def saves_under_way(self) -> list[DirectorySave]:
        """Where other processes write just now, as far as this host can tell: a save may outlive who asked for it."""
        found = (DirectorySave(path) for path in self.path.glob(f"{_INCOMPLETE}*"))
        return [save for save in found if save.is_held_here() and not is_of_this_process(save.path)]

    def put_back(self) -> None:
        """Put every checkpoint back whose successor never came, for a crash came between the two renames.

        One whose name a bad disk has changed gets it back too. Loading does this as well. Where locks are known to one
        host alone, it may come between the renames of a living save of another: that save fails then, and nothing is
        lost.
        """
        for replaced in self.path.glob(f"{_REPLACED}*"):
            written = self.path / replaced.name.replace(_REPLACED, _INCOMPLETE)
            if not _original(replaced).exists() and not is_held(written):
                # On a file system that became read-only there is still a checkpoint to load.
                with contextlib.suppress(OSError):
                    replaced.rename(_original(replaced))
        self._put_back |= put_back_misnamed(self.path)

    def misnamed(self) -> list[Misnamed]:
        """The checkpoints that a listing by name does not find."""
        return list(find_misnamed(self.path))

    def remove_leftovers(self) -> None:
        """Clear away what interrupted saves and removals left behind; saves that may be alive are not touched.

        It is for those who save: a mere reader has no say in what is dead.
        """
        self.put_back()
        leftovers = [path for path in self.path.glob(f"{_INCOMPLETE}*") if is_dead(path)]
        leftovers += [path for path in self.path.glob(f"{_REPLACED}*") if _original(path).exists()]
        for leftover in (*leftovers, *self.path.glob(f"{_REMOVED}*")):
            shutil.rmtree(leftover, ignore_errors=True)


def _original(replaced: Path) -> Path:
    return replaced.with_name(replaced.name.removeprefix(_REPLACED).rpartition("-")[0])
