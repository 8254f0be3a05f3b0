"""What the harness asks of a system: save, load the newest that loads, and say where its files are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..training import Training

KEPT = 2
"""How many checkpoints each system keeps, so that every save also removes one."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of a load; step 0 where nothing did."""

    step: int
    who: int
    reported: list[str] = field(default_factory=list)
    """What the system said of newer checkpoints that it passed over."""


class Saver(Protocol):
    """Saves one training's state."""

    def save(self, step: int) -> None:
        """Begin to save; what is not done on return is done by `wait`."""
        ...

    def wait(self) -> None:
        """Return when the last save is durable; raise where it failed."""
        ...

    def close(self) -> None: ...


class System(Protocol):
    """One way to keep checkpoints in a directory."""

    name: str
    is_multi_rank: bool
    """Whether several ranks write one checkpoint, each its share."""
    hides_unfinished: bool
    """Whether a checkpoint appears under its name only when it is whole, so that nothing else may be called damaged."""
    errors: tuple[type[BaseException], ...]
    """What a careful user catches around a save or a load."""

    def saver(self, root: Path, training: Training) -> Saver: ...

    def load_newest(self, root: Path, training: Training) -> Loaded: ...

    def place(self, root: Path, step: int) -> Path:
        """The file or directory of a committed step."""
        ...

    def is_own_error(self, kind: type[BaseException]) -> bool:
        """Whether it is one that the system raises on purpose, where it makes that distinction."""
        ...

    def says_sound(self, root: Path) -> bool | None:
        """What the system's own check says; None where it has none."""
        ...


class StepPlaces:
    """For systems that leave names, retention and the choice of what to load to the user: `step-N`, as scripts do.

    The load is a generous user's: whatever error the newest raises, the one before it is tried.
    """

    is_multi_rank = False
    hides_unfinished = False
    errors: tuple[type[BaseException], ...] = (Exception,)
    suffix = ""

    def place(self, root: Path, step: int) -> Path:
        return root / f"step-{step:08d}{self.suffix}"

    def is_own_error(self, kind: type[BaseException]) -> bool:
        return True

    def says_sound(self, root: Path) -> bool | None:
        return None

    def steps(self, root: Path) -> list[tuple[int, Path]]:
        """What is there by name, newest first."""
        if not root.is_dir():
            return []
        pattern = re.compile(rf"step-(\d+){re.escape(self.suffix)}")
        found = [(int(match[1]), path) for path in root.iterdir() if (match := pattern.fullmatch(path.name))]
        return sorted(found, reverse=True)

    def prune(self, root: Path) -> None:
        """Keep the newest."""
        for _, path in self.steps(root)[KEPT:]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def newest_loadable(self, root: Path, load: Callable[[Path], tuple[int, int]]) -> Loaded:
        """Try from the newest backwards."""
        reported: list[str] = []
        for _, path in self.steps(root):
            try:
                step, who = load(path)
            except self.errors as problem:
                reported.append(f"{path.name}: {short(problem)}")
            else:
                return Loaded(step, who, reported)
        return Loaded(0, 0, reported)


def short(problem: BaseException) -> str:
    """Its kind and the last line of its message."""
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[-1]}"[:200]
