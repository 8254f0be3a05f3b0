"""What to do when the disk is full: make room, else pause saving with one loud alert, and go on by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.saving.free_space import FreeSpace, free_space, full_disk_error

_LOG: Final = logging.getLogger(__name__)
MakeRoom = Callable[[int], Any]
"""Removes what may go before the save of a step, and says whether that was anything."""


class Verdict(Enum):
    """What a failed save means."""

    NOT_FULL = "not full"
    """It failed for another reason: that is an error, which is to be raised."""
    RETRY = "retry"
    """Room was made: the same save may work now."""
    PAUSED = "paused"
    """The alert is out, and a later save tries again: nothing is to be raised."""


@dataclass(slots=True)
class _Pause:
    """Saving is paused."""

    since_seconds: float
    """On the monotonic clock."""
    retry_seconds: float = 0.0
    """Not before then."""
    skipped_saves: int = 0


class DiskPause:
    """Stands between the training and a full disk. It lives on rank 0, which tells the other ranks what it says.

    It is asked for one save at a time, by whichever thread works on it, and never raises. Before a save `admits` looks
    whether there is room, and makes some if not. After a save that failed, and was removed, `failed` tells whether to
    try again at once. While saving is paused each due save looks again, which costs nothing; a disk that looks free and
    still refuses, as with a quota, is tried again after a wait that doubles each time.

    Args:
        path: The checkpoint directory.
        make_room: Removes what may go, such as `lambda step: pruning.make_room(coming=step)`.
        reserve_bytes: What to leave free; by default 256 MiB, or 1% of a disk that is smaller than 25 GiB.
        first_wait: How long to wait after a save that failed although there seemed to be room.
        longest_wait: The wait is doubled up to this.
        clock: Where times come from.

    Raises:
        ConfigError: A size or a wait cannot work.
    """

    def __init__(
        self,
        path: Path,
        *,
        make_room: MakeRoom,
        reserve_bytes: int | None = None,
        first_wait: timedelta = timedelta(seconds=30),
        longest_wait: timedelta = timedelta(minutes=10),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _check(reserve_bytes, first_wait, longest_wait)
        self._path = path
        self._make_room = make_room
        self._reserve_bytes = reserve_bytes
        self._first_wait_seconds = first_wait.total_seconds()
        self._longest_wait_seconds = longest_wait.total_seconds()
        self._clock = clock
        self._wait_seconds = 0.0
        self._pause: _Pause | None = None

    @property
    def is_paused(self) -> bool:
        """Whether saves are left out for want of room."""
        return self._pause is not None

    def admits(self, step: int, needed_bytes: int) -> bool:
        """Whether to save `step` now, which all ranks together need so many bytes for. If not, that is told already."""
        if self._pause is not None and self._clock.monotonic_seconds() < self._pause.retry_seconds:
            self._pause.skipped_saves += 1
            return False
        space = self._room_for(step, needed_bytes)
        if space is None or space.has_room_for(needed_bytes):
            return True
        self._pause_for(0.0, step, needed_bytes, space, reason=_shortage(space))
        return False

    def failed(self, problem: BaseException, *, step: int, needed_bytes: int) -> Verdict:
        """What it means that the save of `step` failed; whatever it had written has to be removed before."""
        full = full_disk_error(problem)
        if full is None:
            return Verdict.NOT_FULL
        if self._removes_something(step):
            space = free_space(self._path, reserve_bytes=self._reserve_bytes)
            if space is None or space.has_room_for(needed_bytes):
                _LOG.warning("%s: the disk was full; room was made after step %d failed.", self._path, step)
                return Verdict.RETRY
        self._wait_seconds = min(max(2 * self._wait_seconds, self._first_wait_seconds), self._longest_wait_seconds)
        space = free_space(self._path, reserve_bytes=self._reserve_bytes)
        self._pause_for(self._wait_seconds, step, needed_bytes, space, reason=full.strerror or str(full))
        return Verdict.PAUSED

    def succeeded(self, step: int) -> None:
        """The checkpoint of `step` is committed."""
        self._wait_seconds = 0.0
        if self._pause is None:
            return
        ended, self._pause = self._pause, None
        paused_seconds = self._clock.monotonic_seconds() - ended.since_seconds
        log_event(
            _LOG,
            "checkpoint_resumed",
            f"{self._path}: there is room again, and step {step} is saved. "
            f"Saving was paused for {paused_seconds:.0f} s; saves left out: {ended.skipped_saves}.",
            level=logging.WARNING,
            step=step,
            paused_seconds=paused_seconds,
            skipped_saves=ended.skipped_saves,
        )

    def _room_for(self, step: int, needed_bytes: int) -> FreeSpace | None:
        space = free_space(self._path, reserve_bytes=self._reserve_bytes)
        if space is not None and not space.has_room_for(needed_bytes) and self._removes_something(step):
            space = free_space(self._path, reserve_bytes=self._reserve_bytes)
        return space

    def _removes_something(self, step: int) -> bool:
        try:
            return bool(self._make_room(step))
        except Exception:  # noqa: BLE001 - what fails here must not fail the training: then no room was made
            _LOG.warning("%s: no room could be made", self._path, exc_info=True)
            return False

    def _pause_for(
        self, wait_seconds: float, step: int, needed_bytes: int, space: FreeSpace | None, *, reason: str
    ) -> None:
        now = self._clock.monotonic_seconds()
        if self._pause is None:
            self._pause = _Pause(now)
            _alert(self._path, step, needed_bytes, space, reason)
        self._pause.skipped_saves += 1
        self._pause.retry_seconds = now + wait_seconds


def _alert(path: Path, step: int, needed_bytes: int, space: FreeSpace | None, reason: str) -> None:
    free = ""
    if space is not None:
        free = f" {_size(space.free_bytes)} are free, of which {_size(space.reserve_bytes)} are to be left."
    log_event(
        _LOG,
        "checkpoint_paused",
        f"{path}: no room for the checkpoint of step {step} ({reason}); it needs {_size(needed_bytes)}.{free}\n"
        "Saving is paused. Training goes on, and the checkpoints that are there are kept; a restart now would resume "
        "from the newest of them.\n"
        "Free disk space, raise the quota, or keep fewer checkpoints (keep_last_n): saving then goes on by itself.",
        level=logging.ERROR,
        step=step,
        reason=reason,
        free_bytes=None if space is None else space.free_bytes,
        needed_bytes=needed_bytes,
        reserve_bytes=None if space is None else space.reserve_bytes,
        path=str(path),
    )


def _shortage(space: FreeSpace) -> str:
    return "too little free space" if space.has_free_files else "no further file can be made: no inodes are left"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def _check(reserve_bytes: int | None, first_wait: timedelta, longest_wait: timedelta) -> None:
    is_size = isinstance(reserve_bytes, int) and not isinstance(reserve_bytes, bool) and reserve_bytes >= 0
    if reserve_bytes is not None and not is_size:
        raise ConfigError("reserve_bytes", reserve_bytes, "must be a number of bytes, 0 or more")
    if not isinstance(first_wait, timedelta) or first_wait <= timedelta(0):
        raise ConfigError("first_wait", first_wait, "must be a timedelta longer than nothing")
    if not isinstance(longest_wait, timedelta) or longest_wait < first_wait:
        raise ConfigError("longest_wait", longest_wait, f"must be a timedelta, and not shorter than {first_wait}")
