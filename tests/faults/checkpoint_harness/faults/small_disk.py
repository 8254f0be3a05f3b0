"""A file system that is really too small: a save runs into its end at whatever byte that is."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import tempfile
from pathlib import Path

from ..scene import Scene, Story

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE_BYTES = 4096


@functools.cache
def can_mount() -> bool:
    """Whether this process can have mounts of its own, which nobody else sees; asked once, and then it has."""
    new_mounts, new_users, private = 0x00020000, 0x10000000, 1 << 18
    user, group = os.getuid(), os.getgid()
    if user != 0:
        if _libc.unshare(new_users | new_mounts) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    elif _libc.unshare(new_mounts) != 0:
        return False
    _libc.mount(None, b"/", None, private | 0x4000, None)  # MS_PRIVATE | MS_REC
    with tempfile.TemporaryDirectory() as probe:
        if not _mount(Path(probe), 1 << 20):
            return False
        _unmount(Path(probe))
    return True


def too_small(scene: Scene) -> Story:
    """Room for the checkpoints that are there, and for a random part of what comes."""
    used = sum(_pages(path) for path in scene.root.rglob("*") if path.is_file()) * _PAGE_BYTES
    one = used // 2
    steps, share = scene.rng.choice((([3], 1.1), ([3, 4, 5], 1.6)))
    size = used + 4 * _PAGE_BYTES + scene.rng.randrange(int(share * one)) // _PAGE_BYTES * _PAGE_BYTES
    aside = scene.root.rename(scene.directory / "aside")
    scene.root.mkdir()
    if not _mount(scene.root, size):
        raise OSError(ctypes.get_errno(), "mount was refused")
    try:
        shutil.copytree(aside, scene.root, dirs_exist_ok=True, copy_function=shutil.copyfile)
        messages, status, _ = scene.run(scene.train(steps))
        scene.tell(story := Story(where=f"{size - used} bytes were free"), messages, status, was_killed=False)
        aside_again = scene.directory / "after"
        shutil.copytree(scene.root, aside_again, copy_function=shutil.copyfile)
    finally:
        _unmount(scene.root)
    # The disk is enlarged: the same files, with room around them.
    scene.root.rmdir()
    aside_again.rename(scene.root)
    return story


def _pages(path: Path) -> int:
    return -(-path.stat().st_size // _PAGE_BYTES)


def _mount(directory: Path, size_bytes: int) -> bool:
    options = f"size={size_bytes}".encode()
    return bool(_libc.mount(b"tmpfs", str(directory).encode(), b"tmpfs", 0, options) == 0)


def _unmount(directory: Path) -> None:
    detach = 2
    _libc.umount2(str(directory).encode(), detach)
