"""A power cut, played by its rules: after a kill, what was written but not fsynced is lost, cut short or zeroed.

The page cache outlives a SIGKILL, so kills alone never show a missing fsync. Here every write, rename and fsync was
seen; what a file system need not have kept is taken away: the bytes of files that were not fsynced, and the last
renames in a directory that was not.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ..scene import Scene, Story
from ..syscall_gate import Call
from .kills import kill_once

_RENAMES = ("rename", "renameat", "renameat2")
_SYNCS = ("fsync", "fdatasync")
_REMOVALS = ("unlink", "unlinkat", "rmdir")


def while_saving(scene: Scene) -> Story:
    """Before any of the changes that a save makes."""
    story = kill_once(scene, lambda at: at.train([3, 4]), "power cut", victims=("everyone",))
    calls = scene.child.gate.calls[:-1] if scene.child.gate else []
    files = _lose_data(scene, _unsynced_files(calls))  # before renames are undone: the names are those of now
    renames = _undo_renames(scene, calls)
    story.where += f"; lost: {files} files' data, {renames} renames"
    return story


def _unsynced_files(calls: list[Call]) -> set[str]:
    """The files whose bytes need not be on the disk, by the names they have now."""
    dirty: set[str] = set()
    for call in calls:
        if call.name in _RENAMES:
            dirty = {_moved(path, call) for path in dirty}
        elif call.name in (*_SYNCS, *_REMOVALS):
            dirty.discard(call.path)
        elif call.name not in ("mkdir", "mkdirat"):
            dirty.add(call.path)
    return dirty


def _moved(path: str, call: Call) -> str:
    return call.target + path[len(call.path) :] if f"{path}/".startswith(f"{call.path}/") else path


def _undo_renames(scene: Scene, calls: list[Call]) -> int:
    """A journal keeps the order: if one rename is lost, so are those after it."""
    unsynced: list[Call] = []
    for call in calls:
        if call.name in _RENAMES:
            unsynced.append(call)
        elif call.name in _SYNCS:
            unsynced = [rename for rename in unsynced if str(PurePosixPath(rename.target).parent) != call.path]
    undone = 0
    for rename in reversed(unsynced[scene.rng.randrange(len(unsynced) + 1) :]):
        source, target = scene.directory / rename.path, scene.directory / rename.target
        if target.exists() and not source.exists() and source.parent.is_dir():
            target.rename(source)
            undone += 1
    return undone


def _lose_data(scene: Scene, dirty: set[str]) -> int:
    lost = 0
    for path in sorted(Path(scene.directory, name) for name in dirty):
        if not path.is_file() or scene.rng.random() < 0.3:
            continue
        size = path.stat().st_size
        kept = scene.rng.choice((0, scene.rng.randrange(size + 1)))
        os.truncate(path, kept)
        if scene.rng.random() < 0.5:
            os.truncate(path, size)  # the length was on the disk, the bytes were not
        lost += kept < size
    return lost
