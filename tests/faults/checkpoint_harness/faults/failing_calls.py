"""System calls that fail: no space, or an input/output error, once or for as long as a save takes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from ..processes import Tell
from ..scene import NotReachedError, Scene, Story
from ..syscall_gate import CHANGES, DATA_WRITES, READS, Call

_NEEDS_SPACE: Final = DATA_WRITES | {"open", "openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "fsync"}
_TOUCHES_DISK: Final = CHANGES

_counts: dict[tuple[str, str, frozenset[str]], int] = {}


def enospc(scene: Scene) -> Story:
    """As a full disk answers, from any call that may need a block."""
    return _fail(scene, _NEEDS_SPACE, errno.ENOSPC)


def eio(scene: Scene) -> Story:
    """As a failing disk answers, from any call that changes something."""
    return _fail(scene, _TOUCHES_DISK, errno.EIO)


def eio_on_read(scene: Scene) -> Story:
    """One read fails in a load; the next load finds the disk well."""
    count = _count(scene, READS, "load", lambda at: at.load())
    failing = Failing(READS, errno.EIO, first=1 + scene.rng.randrange(max(1, count)), times=1)
    messages, status, _ = scene.run(scene.load(), gated=READS, decide=failing)
    if failing.failed is None:
        raise NotReachedError("read")
    story = Story(where=f"load: {failing.told()}", may_report=True, may_refuse=True)
    if status is None:
        story.hung = True
    elif not messages:
        story.crashes.append(scene.last_words())
    elif messages[0][0] == "refused":
        _, is_own, text = messages[0]
        story.reported.append(text)
        if not is_own:
            story.crashes.append(text)
    else:
        _, step, _, reported, wrong = messages[0]
        story.reported += reported
        if wrong:
            story.wrong.append(f"step {step}: {', '.join(wrong[:3])}")
        elif step < story.promised and reported:
            story.promised = step  # it was told that the newest cannot be read, and may have put it aside
    return story


def _fail(scene: Scene, names: frozenset[str], number: int) -> Story:
    # With one save, one that lied cannot hide behind the next; with three, the training has to go on after it failed.
    steps = scene.rng.choice(([3], [3, 4, 5]))
    count, times = _count(scene, names, str(steps), lambda at: at.train(steps)), scene.rng.choice((1, 1, 3, 1000))
    failing = Failing(names, number, first=1 + scene.rng.randrange(max(1, count)), times=times)
    messages, status, _ = scene.run(scene.train(steps), gated=CHANGES, decide=failing)
    if failing.failed is None:
        raise NotReachedError("change")
    return scene.tell(Story(where=f"save: {failing.told()}"), messages, status, was_killed=False)


def _count(scene: Scene, names: frozenset[str], scenario: str, body: Callable[[Scene], Callable[[Tell], None]]) -> int:
    key = (scene.system.name, scenario, names)
    if key not in _counts:
        rehearsal = scene.rehearsal()
        _counts[key] = len(rehearsal.run(body(rehearsal), gated=names)[2])
        rehearsal.clear()
    return _counts[key]


class Failing:
    """Lets calls of some names fail, from the `first` of them on, `times` times."""

    def __init__(self, names: frozenset[str], number: int, *, first: int, times: int) -> None:
        self._names, self._number, self._first, self._times = names, number, first, times
        self._seen = 0
        self.failed: Call | None = None

    def __call__(self, call: Call) -> int:
        if call.name not in self._names:
            return 0
        self._seen += 1
        if not self._first <= self._seen < self._first + self._times:
            return 0
        self.failed = self.failed or call
        return self._number

    def told(self) -> str:
        """What failed, in words."""
        assert self.failed is not None
        often = {1: "once", 1000: "from then on"}.get(self._times, f"{self._times} times")
        return (
            f"{errno.errorcode[self._number]} from {self.failed.name} {self.failed.path} {often} (call {self._first})"
        )
