"""A worker's pulse: how many optimizer steps it has made and when, in shared memory that others of its node can read.

A launcher that waits for a hang to show must not depend on what hangs: the worker only writes a few bytes of mapped
memory, and whoever asks reads them, whatever the worker's interpreter is doing.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock

PULSE_VARIABLE: Final = "PRODUCTION_ML_PULSE"
"""The path of this worker's pulse; the launcher sets it, and makes the file."""
_LAYOUT: Final = struct.Struct("=qqdd")
_SIZE_BYTES: Final = 4096


class Phase(IntEnum):
    """What a worker is doing, as far as it says so."""

    STARTING = 0
    """Nothing is known of how long it may take."""
    TRAINING = 1
    PAUSED = 2
    """It does something that takes longer than a step and says so: evaluates, saves, compiles."""
    ENDING = 3


@dataclass(frozen=True, slots=True)
class Beat:
    """What a pulse said when it was read. Both times are of the node's monotonic clock, in seconds."""

    steps: int
    """Optimizer steps that this process has made."""
    phase: Phase
    step_seconds: float
    """When the newest step ended; 0.0 before the first."""
    phase_seconds: float
    """When the phase began."""


class Pulse:
    """One worker's pulse, for its writer and its readers; CLOCK_MONOTONIC is the same for all processes of a node.

    Args:
        path: A file in memory, such as under /dev/shm; made if it is not there.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE_BYTES)
            self._memory = mmap.mmap(descriptor, _SIZE_BYTES)
        finally:
            os.close(descriptor)

    def beat(self) -> None:
        """One more optimizer step has been made; less than a microsecond."""
        steps, _, _, _ = _LAYOUT.unpack_from(self._memory)
        now = self._clock.monotonic_seconds()
        _LAYOUT.pack_into(self._memory, 0, steps + 1, Phase.TRAINING, now, now)

    def enter(self, phase: Phase) -> None:
        """Say what this worker does from now on."""
        steps, _, step_seconds, _ = _LAYOUT.unpack_from(self._memory)
        _LAYOUT.pack_into(self._memory, 0, steps, phase, step_seconds, self._clock.monotonic_seconds())

    def read(self) -> Beat:
        """The newest beat."""
        steps, phase, step_seconds, phase_seconds = _LAYOUT.unpack_from(self._memory)
        return Beat(steps, Phase(phase), step_seconds, phase_seconds)

    def close(self) -> None:
        """Give the mapping back; the file stays with whoever made it."""
        self._memory.close()


def own_pulse() -> Pulse | None:
    """This process's pulse, if its launcher asked for one."""
    path = os.environ.get(PULSE_VARIABLE)
    return Pulse(Path(path)) if path else None
