"""The kinds of fault, each with its share of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..scene import Scene, Story
from ..systems import System
from . import clocks, damage, failing_calls, kills, power_cut, ranks, readers, small_disk, writers


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of faults that share a cause.

    Attributes:
        share: How many of a hundred faults are of this kind.
        cause: Does one to a scene, by the scene's own chance, and tells what happened.
        applies: Which systems can meet it.
    """

    name: str
    share: int
    cause: Callable[[Scene], Story]
    applies: Callable[[System], bool] = lambda system: True


KINDS: Final = (
    Kind("SIGKILL while saving", 13, kills.while_saving),
    Kind("SIGKILL while replacing a step", 6, kills.while_replacing),
    Kind("power cut while saving", 4, power_cut.while_saving),
    Kind("SIGKILL while loading past damage", 4, kills.while_loading),
    Kind("ENOSPC from a system call", 7, failing_calls.enospc),
    Kind("EIO from a system call", 9, failing_calls.eio),
    Kind("EIO from a read", 5, failing_calls.eio_on_read),
    Kind("full disk", 6, small_disk.too_small, lambda system: small_disk.can_mount()),
    Kind("bit flipped in a file", 12, damage.flipped_bit),
    Kind("file truncated", 5, damage.truncated),
    Kind("bytes zeroed or overwritten", 3, damage.overwritten),
    Kind("file deleted", 3, damage.deleted, damage.has_several_files),
    Kind("files swapped or of another step", 4, damage.mixed),
    Kind("file renamed", 2, damage.file_renamed, damage.has_several_files),
    Kind("checkpoint renamed", 2, damage.checkpoint_renamed),
    Kind("load beside a training", 2, readers.beside_a_training),
    Kind("two writers", 4, writers.both_finish),
    Kind("two writers, one killed", 2, writers.one_is_killed),
    Kind("clock going back or ahead", 3, clocks.jumping),
    Kind("rank killed while saving", 4, ranks.killed, lambda system: system.is_multi_rank),
)
