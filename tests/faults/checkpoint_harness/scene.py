"""One fault's stage: a directory with two good checkpoints, a fault, and what a fresh process finds there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .processes import Child, Tell, end_descendants
from .syscall_gate import Call, Decision
from .systems import System, short
from .training import Training

HANG_SECONDS = 30.0
OLDER, NEWEST = 1, 2
"""The steps that every scene begins with."""
RECOVERY = 50
"""The step that is saved after the fault."""


class NotReachedError(Exception):
    """The run ended before the moment that the fault waited for, so there was none."""


@dataclass(slots=True)
class Story:
    """What a fault did, in the words of those who saw it."""

    where: str = ""
    promised: int = NEWEST
    """The newest step whose save was said to be done, and which the fault did not touch."""
    begun: dict[int, set[int]] = field(default_factory=lambda: {OLDER: {0}, NEWEST: {0}})
    """By step, whose state of it may be found: one that was saved anew must not come back as it was before."""
    is_contested: bool = False
    """Whether two trainings saved at once, so that nobody can say whose state of a step came last."""
    is_newest_damaged: bool = False
    """Whether something was done to a committed checkpoint that the load has to report."""
    may_report: bool = False
    """Whether a load may call something damaged, though what has to be loaded is not."""
    may_refuse: bool = False
    """Whether a load that raises the system's own error is right, because the fault hits the load itself."""
    wrong: list[str] = field(default_factory=list)
    """Loads of a wrong state that were part of the fault itself."""
    lost: list[str] = field(default_factory=list)
    """Loads that were part of it and did not find what was good."""
    false_alarms: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    hung: bool = False


class Scene:
    """Where a fault happens.

    Args:
        system: Whose checkpoints.
        template: A directory with two of its checkpoints.
        directory: Made for this scene; `checkpoints` in it is what the fault is about.
        number: How many of its kind came before.
        seed: The seed of the whole run; the fault's own chance comes from it, its kind and its number.
    """

    def __init__(
        self, system: System, template: Path, directory: Path, *, kind: str = "", number: int = 0, seed: int = 0
    ) -> None:
        self.system = system
        self.directory = directory
        self.root = directory / "checkpoints"
        self.number, self.seed = number, seed
        self.rng = random.Random(f"{seed} {kind} {number}")
        # Beside the directory, for what touches the directory is counted.
        self.log = directory.with_suffix(".log")
        self.child: Child
        directory.mkdir(parents=True)
        (directory / "tmp").mkdir()
        if template.exists():
            shutil.copytree(template, self.root, copy_function=shutil.copyfile)

    def train(
        self, steps: Iterable[int], *, who: int = 0, clock_shift_seconds: float = 0.0, start: int | None = None
    ) -> Callable[[Tell], None]:
        """What a training process does: save each of `steps`, and say so before and after."""

        def body(tell: Tell) -> None:
            tempfile.tempdir = str(self.directory / "tmp")
            shift_clock(clock_shift_seconds)
            training = Training()
            saver = self.system.saver(self.root, training)
            if start is not None:
                os.read(start, 1)
            save_steps(self.system, saver, training, steps, who, tell)

        return body

    def run(
        self,
        body: Callable[[Tell], None],
        *,
        gated: frozenset[str] = frozenset(),
        decide: Decision | None = None,
    ) -> tuple[list[Any], int | None, list[Call]]:
        """Run `body` in a new process, with each of its system calls put before `decide`."""
        deadline = time.monotonic() + HANG_SECONDS
        child = Child(body, log=self.log, gated=gated, directory=self.directory)
        self.child = child
        all_ended = True
        if child.gate is not None:
            all_ended = child.gate.keep(decide or (lambda call: 0), deadline_seconds=deadline)
        messages, status = child.ended(timeout_seconds=max(0.1, deadline - time.monotonic()))
        # A writer that outlives its training by so much has hung as well.
        return messages, status if all_ended else None, child.gate.calls if child.gate else []

    def rehearsal(self) -> Scene:
        """A scene with the same files, to find out what an undisturbed run does."""
        return Scene(self.system, self.root, self.directory.with_name(f"{self.directory.name}-rehearsal"))

    def tell(self, story: Story, messages: list[Any], status: int | None, *, was_killed: bool) -> Story:
        """Add to the story what a training process said and how it ended."""
        for kind, step, *rest in messages:
            if kind == "begun":
                story.begun.setdefault(step, set()).add(rest[0])
            elif kind == "saved":
                story.promised = max(story.promised, step)
                if not story.is_contested:
                    story.begun[step] = {rest[0]}
            elif kind == "failed":
                story.reported.append(rest[1])
                if not rest[0]:
                    story.crashes.append(rest[1])
        if status is None:
            story.hung = True
        elif status != 0 and not was_killed:
            story.crashes.append(self.last_words())
        return story

    def last_words(self) -> str:
        """The end of what its processes printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:300] if lines else "ended without a word"

    def load(self, *, clock_shift_seconds: float = 0.0) -> Callable[[Tell], None]:
        """What a fresh process does: load, and compare every bit with what it has to be."""

        def body(tell: Tell) -> None:
            tempfile.tempdir = str(self.directory / "tmp")
            shift_clock(clock_shift_seconds)
            training = Training()
            try:
                loaded = self.system.load_newest(self.root, training)
            except self.system.errors as problem:
                tell("refused", self.system.is_own_error(type(problem)), short(problem))
                if not self.system.is_own_error(type(problem)):
                    raise
                return
            wrong = training.differences(loaded.step, loaded.who) if loaded.step else []
            tell("loaded", loaded.step, loaded.who, loaded.reported, wrong)

        return body

    def recover(self) -> Callable[[Tell], None]:
        """What the next training does: save once more."""
        return self.train([RECOVERY], who=7)

    def clear(self) -> None:
        """Leave nothing."""
        end_descendants()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def save_steps(system: System, saver: Any, training: Training, steps: Iterable[int], who: int, tell: Tell) -> None:
    """Save each step, and tell the parent; a save that fails does not end the training."""
    for step in steps:
        training.go_to(step, who)
        tell("begun", step, who)
        try:
            saver.save(step)
            saver.wait()
        except system.errors as problem:
            tell("failed", step, system.is_own_error(type(problem)), short(problem))
        else:
            tell("saved", step, who)
    with contextlib.suppress(*system.errors):
        saver.close()


def shift_clock(seconds: float) -> None:
    """Let this process believe in another time; the files' own times are set apart from this."""
    if not seconds:
        return
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_time_ns() + int(seconds * 1e9)
