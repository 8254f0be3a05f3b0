"""Damage to the files of the newest checkpoint while nothing runs: what disks, copies and people do to them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from ..scene import NEWEST, OLDER, Scene, Story
from ..systems import System


def has_several_files(system: System) -> bool:
    """Where a checkpoint is one file, to delete it is to delete the checkpoint, which nobody could notice."""
    return not getattr(system, "suffix", "")


def flipped_bit(scene: Scene) -> Story:
    """One bit, in any byte of any file."""
    path = _any_file(scene)
    return _damaged(scene, f"{flip_bit(path, scene.rng)} of {path.name}")


def truncated(scene: Scene) -> Story:
    """A file that ends early, as after a power cut, or that has more behind its end."""
    path = _any_file(scene)
    size = path.stat().st_size
    if scene.rng.random() < 0.2:
        with open(path, "ab") as file:
            file.write(scene.rng.randbytes(scene.rng.randrange(1, 5000)))
        return _damaged(scene, f"{path.name} made longer")
    length = scene.rng.choice((0, size - 1, scene.rng.randrange(size)))
    os.truncate(path, length)
    return _damaged(scene, f"{path.name} cut from {size} to {length} bytes")


def overwritten(scene: Scene) -> Story:
    """A block of zeros or of noise, as a lost or misdirected write leaves it."""
    path = _any_file(scene)
    data = bytearray(path.read_bytes())
    length = min(len(data), scene.rng.choice((16, 512, 4096)))
    begin = scene.rng.randrange(len(data) - length + 1)
    block = bytes(length) if scene.rng.random() < 0.5 else scene.rng.randbytes(length)
    if data[begin : begin + length] == block:
        block = bytes([block[0] ^ 1]) + block[1:]
    data[begin : begin + length] = block
    path.write_bytes(data)
    return _damaged(scene, f"bytes {begin} to {begin + length} of {path.name} overwritten")


def deleted(scene: Scene) -> Story:
    """One of a checkpoint's files is gone."""
    path = _any_file(scene)
    path.unlink()
    return _damaged(scene, f"{path.name} deleted")


def mixed(scene: Scene) -> Story:
    """Files that are sound, in the place of others."""
    newest, older = scene.system.place(scene.root, NEWEST), scene.system.place(scene.root, OLDER)
    if newest.is_dir() and scene.rng.random() < 0.7:
        path = _any_file(scene)
        other = older / path.relative_to(newest)
        if other.is_file() and other.read_bytes() != path.read_bytes():
            shutil.copyfile(other, path)
            return _damaged(scene, f"{path.name} of the older checkpoint put into the newest")
    swap = scene.root / "swap"
    newest.rename(swap)
    older.rename(newest)
    swap.rename(older)
    # Neither is what its name says; the newest state is in the place of the older one.
    return _damaged(scene, "the two checkpoints have changed places", promised=0)


def file_renamed(scene: Scene) -> Story:
    """A bit of the name of a checkpoint's file is flipped."""
    path = _any_file(scene)
    target = path.with_name(_flipped_name(path.name, scene.rng))
    path.rename(target)
    return _damaged(scene, f"{path.name} renamed to {target.name}")


def checkpoint_renamed(scene: Scene) -> Story:
    """A bit of the newest checkpoint's own name is flipped, or the step in it is another."""
    place = scene.system.place(scene.root, NEWEST)
    name = place.name.replace("2", str(scene.rng.choice((3, 4, 9))))
    if scene.rng.random() < 0.5:
        name = _flipped_name(place.name, scene.rng)
    place.rename(place.with_name(name))
    return _damaged(scene, f"{place.name} renamed to {name}")


def flip_bit(path: Path, rng: random.Random) -> str:
    """Flip one, and say which."""
    data = bytearray(path.read_bytes())
    position, bit = rng.randrange(len(data)), rng.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {position} of {len(data)}"


def _flipped_name(name: str, rng: random.Random) -> str:
    while True:
        letters = bytearray(name.encode())
        letters[rng.randrange(len(letters))] ^= 1 << rng.randrange(7)
        if b"/" not in letters and b"\0" not in letters:
            return letters.decode()


def _any_file(scene: Scene) -> Path:
    place = scene.system.place(scene.root, NEWEST)
    if place.is_file():
        return place
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size)
    return scene.rng.choice(files)


def _damaged(scene: Scene, where: str, *, promised: int = OLDER) -> Story:
    """The story of it; the system's own check has to notice, too."""
    story = Story(where=where, promised=promised, is_newest_damaged=True)
    messages, status, _ = scene.run(_check(scene.system, scene.root))
    if status != 0:
        story.crashes.append(f"verify: {scene.last_words()}")
    elif messages[0][0] is True:
        story.reported.append("verify found it sound")
        story.crashes.append("verify calls a damaged checkpoint sound")
    return story


def _check(system: System, root: Path) -> Callable[..., None]:
    return lambda tell: tell(system.says_sound(root))
