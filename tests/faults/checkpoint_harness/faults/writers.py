"""Two trainings in one directory, which nobody should do and everybody does once."""

from __future__ import annotations

import os
import time

from ..processes import Child
from ..scene import HANG_SECONDS, NotReachedError, Scene, Story
from ..syscall_gate import CHANGES
from .kills import Killer


def both_finish(scene: Scene) -> Story:
    """Both save at once, the same steps or other ones."""
    return _race(scene, kill_before=None)


def one_is_killed(scene: Scene) -> Story:
    """One of them dies in a save while the other goes on."""
    return _race(scene, kill_before=scene.rng.randrange(1, 40))


def _race(scene: Scene, kill_before: int | None) -> Story:
    steps = [3, 4, 5], scene.rng.choice(([3, 4, 5], [4, 5, 6], [2, 3, 4]))
    start, go = os.pipe()
    gated = frozenset() if kill_before is None else CHANGES
    first = Child(scene.train(steps[0], who=1, start=start), log=scene.log, gated=gated, directory=scene.directory)
    second = Child(scene.train(steps[1], who=2, start=start), log=scene.log)
    os.close(start)
    os.write(go, b"12")
    os.close(go)
    scene.child = first
    story = Story(where=f"steps {steps[0]} and {steps[1]}", is_contested=True)
    deadline = time.monotonic() + HANG_SECONDS
    killer = None
    if first.gate is not None and kill_before is not None:
        killer = Killer(scene, kill_before, "trainer")
        first.gate.keep(killer, deadline_seconds=deadline)
        story.where += f", the first killed before change {kill_before}"
    for child, other in ((second, first), (first, None)):
        messages, status = child.ended(timeout_seconds=max(0.1, deadline - time.monotonic()), beside=other)
        scene.tell(story, messages, status, was_killed=child is first and killer is not None)
    if killer is not None and killer.killed_before is None:
        raise NotReachedError("two writers")
    return story
