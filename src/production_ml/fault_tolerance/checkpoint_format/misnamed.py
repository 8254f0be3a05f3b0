"""Checkpoints whose own name was damaged: a flipped bit in `step-00000300` hides all of it from a listing by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from production_ml.fault_tolerance.checkpoint_format.manifest import MANIFEST_FILE, read_step

_LOG: Final = logging.getLogger(__name__)
_MOST_FLIPPED_BITS: Final = 2
"""More than that is a name that somebody chose: `step_` for `step-` are four, `keep` for `step` too."""


@dataclass(frozen=True, slots=True)
class Misnamed:
    """A directory that holds the checkpoint of another step than its name says, or whose name says none."""

    path: Path
    step: int
    """By its manifest, which has not been verified."""

    @property
    def target(self) -> Path:
        """The name that it was given."""
        return self.path.with_name(f"step-{self.step:08d}")

    @property
    def problem(self) -> str:
        """As the end of a sentence that begins with the path."""
        return f"holds the checkpoint of step {self.step} under another name than it was given"


def find_misnamed(directory: Path) -> Iterator[Misnamed]:
    """The checkpoints in `directory` whose names differ from what they were by a bit or two.

    Only where no checkpoint of that name is there: a copy beside its original was named by somebody.
    """
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        step = _step_within(path)
        if step is None:
            continue
        found = Misnamed(path, step)
        if path.name != found.target.name and _is_near(path.name, found.target.name) and not found.target.exists():
            yield found


def put_back_misnamed(directory: Path) -> set[int]:
    """Give such checkpoints their names back; what else is wrong with them is found out when they are read.

    Returns:
        The steps that have their names again.
    """
    put_back = set()
    for found in find_misnamed(directory):
        try:
            found.path.rename(found.target)
        except OSError as problem:
            _LOG.warning("%s: %s, and cannot be renamed (%s)", found.path, found.problem, problem.strerror)
            continue
        _LOG.warning("%s: %s; it is called %s again. Check the disk.", found.path, found.problem, found.target.name)
        put_back.add(found.step)
    return put_back


def _step_within(path: Path) -> int | None:
    if path.name.startswith("."):
        return None
    return read_step(path / MANIFEST_FILE)


def _is_near(one: str, other: str) -> bool:
    """Whether a bad disk could have made one of the other; two letters are soon changed by a person, two bits never."""
    mine, theirs = os.fsencode(one), os.fsencode(other)
    if len(mine) != len(theirs):
        return False
    return sum((a ^ b).bit_count() for a, b in zip(mine, theirs, strict=True)) <= _MOST_FLIPPED_BITS
