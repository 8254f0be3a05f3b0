"""The clock jumps between saves, and files bear times of the past and the future; a kill comes on top."""

from __future__ import annotations

import os

from ..scene import NotReachedError, Scene, Story
from ..syscall_gate import CHANGES
from .kills import Killer

_HOUR = 3600.0
_JUMPS = (-20 * 365 * 24 * _HOUR, -48 * _HOUR, -_HOUR, _HOUR, 48 * _HOUR, 20 * 365 * 24 * _HOUR)


def jumping(scene: Scene) -> Story:
    """Save under one time, die in a save under another, load under a third."""
    shifts = [scene.rng.choice(_JUMPS) for _ in range(2)]
    story = Story(
        where=f"clock at {shifts[0] / _HOUR:+.0f} h, then at {shifts[1] / _HOUR:+.0f} h, with files' times mixed"
    )
    messages, status, _ = scene.run(scene.train([3], clock_shift_seconds=shifts[0]))
    scene.tell(story, messages, status, was_killed=False)
    _mix_times(scene)
    killer = Killer(scene, scene.rng.randrange(1, 15), "everyone")
    messages, status, _ = scene.run(scene.train([4, 5], clock_shift_seconds=shifts[1]), gated=CHANGES, decide=killer)
    scene.tell(story, messages, status, was_killed=True)
    if killer.killed_before is None:
        raise NotReachedError("clock")
    _mix_times(scene)
    return story


def _mix_times(scene: Scene) -> None:
    for path in [scene.root, *scene.root.rglob("*")]:
        moment = path.stat().st_mtime + scene.rng.choice(_JUMPS)
        os.utime(path, (moment, moment))
