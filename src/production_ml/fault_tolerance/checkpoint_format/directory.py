"""The names in a checkpoint directory, and the steps that change them: commit, quarantine, removal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    MANIFEST_FILE,
    Manifest,
    encode_manifest,
    read_manifest,
)
from production_ml.storage.durable import fsync_directory, write_durably

_COMMITTED = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a retention policy looks at."""

    step: int
    metrics: Mapping[str, float]
    created_at: float
    size_bytes: int = 0


class CheckpointDirectory:
    """A directory of checkpoints. `step-00000300/` is committed; what begins with a dot is not, yet or any more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def committed(self, step: int) -> Path:
        """Where the checkpoint of `step` lives once it is committed."""
        return self.path / f"step-{step:08d}"

    def incomplete(self, step: int, session: str) -> Path:
        """Where the ranks of one `session` write the checkpoint of `step`."""
        return self.path / f".incomplete-step-{step:08d}-{session}"

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
        """
        return read_manifest(self.committed(step) / MANIFEST_FILE, step=step)

    def infos(self) -> list[CheckpointInfo]:
        """The checkpoints whose manifests are sound, oldest first."""
        found = []
        for step in self.steps():
            try:
                manifest = self.manifest(step)
            except DamagedCheckpointError:
                continue
            found.append(CheckpointInfo(step, manifest.metrics, manifest.created_at, manifest.size_bytes))
        return found

    def commit(self, written: Path, manifest: Manifest) -> None:
        """Turn a directory whose shards are all durable into a checkpoint."""
        write_durably(written / MANIFEST_FILE, encode_manifest(manifest))
        fsync_directory(written)
        target = self.committed(manifest.step)
        replaced = self.path / f".replaced-{written.name}"
        if target.exists():
            # A run that started anew in an old directory reaches the step again; rename() takes no full directory.
            target.rename(replaced)
        written.rename(target)
        fsync_directory(self.path)
        shutil.rmtree(replaced, ignore_errors=True)

    def quarantine(self, step: int, reason: Mapping[str, Any]) -> Path:
        """Move a damaged checkpoint out of the way and keep it: it may be the evidence against a disk."""
        source = self.committed(step)
        holder = self.path / "quarantine"
        holder.mkdir(exist_ok=True)
        stamp = iso_utc(SYSTEM_CLOCK.wall_seconds()).replace(":", "")
        target = holder / f"{source.name}.{stamp}"
        source.rename(target)
        (target / "reason.json").write_text(json.dumps(dict(reason), indent=2) + "\n")
        fsync_directory(self.path)
        return target

    def remove(self, step: int) -> None:
        """Delete a checkpoint so that a crash on the way leaves nothing that looks like one."""
        doomed = self.path / f".removed-{self.committed(step).name}"
        shutil.rmtree(doomed, ignore_errors=True)
        self.committed(step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what earlier, interrupted saves and removals left behind."""
        for pattern in (".incomplete-*", ".replaced-*", ".removed-*"):
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
