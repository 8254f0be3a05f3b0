"""SIGKILL before a system call that changes something: every such call of a save, a replacement and a load in turn."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Sequence
from typing import Final

import psutil

from ..processes import Tell
from ..scene import NEWEST, OLDER, NotReachedError, Scene, Story
from ..syscall_gate import CHANGES, Call

VICTIMS: Final = ("caller", "trainer", "everyone")
"""Whom the kill hits: the process that makes the call (a writer, if there is one), the training, or both."""

_counts: dict[tuple[str, str], int] = {}


def while_saving(scene: Scene) -> Story:
    """In a save that commits, and prunes the oldest."""
    return kill_once(scene, lambda at: at.train([3, 4]), "save")


def while_replacing(scene: Scene) -> Story:
    """In a save of a step that is there already, as a run that started anew makes it."""
    return kill_once(scene, lambda at: at.train([NEWEST], who=1), "replace")


def while_loading(scene: Scene) -> Story:
    """In a load that has to put a damaged checkpoint aside."""
    place = scene.system.place(scene.root, NEWEST)
    path = place if place.is_file() else max(place.rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)
    try:
        story = kill_once(scene, lambda at: at.load(), "load")
    except NotReachedError:
        # A system that changes nothing when it loads cannot be hurt there: what is left is the damage.
        story = Story(where=f"load: {path.name} cut in half", is_newest_damaged=True)
    story.promised, story.may_report = OLDER, True
    return story


def kill_once(
    scene: Scene,
    body: Callable[[Scene], Callable[[Tell], None]],
    scenario: str,
    *,
    victims: Sequence[str] = VICTIMS,
) -> Story:
    """Kill before one of the changes that an undisturbed run makes; the faults of a run go through all of them.

    Raises:
        NotReachedError: This run made fewer.
    """
    count = _changes(scene, body, scenario)
    if not count:
        raise NotReachedError(scenario)
    target, victim = _moment(scene, count, scenario, victims)
    killer = Killer(scene, target, victim)
    messages, status, _ = scene.run(body(scene), gated=CHANGES, decide=killer)
    if killer.killed_before is None:
        raise NotReachedError(f"{scenario}: change {target} of {count}")
    call = killer.killed_before
    story = Story(where=f"{scenario}: {victim} killed before {call.name} {call.path} (change {target} of {count})")
    return scene.tell(story, messages, status, was_killed=True)


def _moment(scene: Scene, count: int, scenario: str, victims: Sequence[str]) -> tuple[int, str]:
    """Which change, and who is killed before it: every change once, then every change with another victim."""
    order = list(range(1, count + 1))
    random.Random(f"{scene.seed} {scenario}").shuffle(order)
    lap, index = divmod(scene.number, count)
    return order[index], victims[(index + lap) % len(victims)]


def _changes(scene: Scene, body: Callable[[Scene], Callable[[Tell], None]], scenario: str) -> int:
    key = (scene.system.name, scenario)
    if key not in _counts:
        rehearsal = scene.rehearsal()
        _counts[key] = len(rehearsal.run(body(rehearsal), gated=CHANGES)[2])
        rehearsal.clear()
    return _counts[key]


class Killer:
    """Kills, once, when its moment has come."""

    def __init__(self, scene: Scene, target: int, victim: str) -> None:
        self._scene, self._target, self._victim = scene, target, victim
        self.killed_before: Call | None = None

    def __call__(self, call: Call) -> int:
        if call.number == self._target:
            self.killed_before = call
            if self._victim == "trainer":
                self._scene.child.kill()
            elif self._victim == "caller":
                kill(call.process)
            else:
                group = [process.pid for process in psutil.Process().children(recursive=True)]
                # Stopped first: while one is killed, another must not get on.
                for signal_number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in group:
                        kill(pid, signal_number)
        return 0


def kill(pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal; a process that is gone already is as dead as can be."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)
