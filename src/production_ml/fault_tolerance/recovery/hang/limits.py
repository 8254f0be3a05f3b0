"""How long a worker may be silent: learned from its own steps, longer while it starts or says that it pauses."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.pulse import Beat, Phase

_GAPS_KEPT: Final = 64
_GAPS_NEEDED: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HangLimits:
    """The limits of silence; `training` in StepTimes says how they meet the learned step time.

    A silence beyond the limit is looked into. A rank that is then found alive gets `raise_factor` times the limit,
    once. So a hang is ended after three step times and the looking, as soon as that is more than the floor.
    """

    floor_seconds: float = 30.0
    """Never less, however short the steps: a checkpoint to a slow disk, a pause of the machine."""
    multiple: float = 2.0
    """Of the median step."""
    pause_multiple: float = 1.5
    """Of the longest recent time between two steps: an evaluation that happens now and then."""
    raise_factor: float = 1.5
    """By which the limit is raised for a rank that is slow, but alive."""
    paused_seconds: float = 600.0
    """While it evaluates, saves or compiles."""
    starting_seconds: float = 1800.0
    """From the start to the first step: torch's own limit for gloo."""
    fixed_seconds: float | None = None
    """Instead of what would be learned."""

    def __post_init__(self) -> None:
        for name in (
            "floor_seconds",
            "multiple",
            "pause_multiple",
            "raise_factor",
            "paused_seconds",
            "starting_seconds",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(name, getattr(self, name), "must be more than 0")
        if self.fixed_seconds is not None and not (self.fixed_seconds > 0 and math.isfinite(self.fixed_seconds)):
            raise ConfigError("hang timeout", self.fixed_seconds, "must be a number of seconds above 0")


def parse_hang_timeout(text: str) -> HangLimits | None:
    """What `--hang-timeout` says: `auto`, `auto:FLOOR` in seconds, a number of seconds, or `off`, which gives None.

    Raises:
        ConfigError: It is none of these.
    """
    if text == "off":
        return None
    if text == "auto":
        return HangLimits()
    is_floor = text.startswith("auto:")
    try:
        seconds = float(text.removeprefix("auto:"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        problem = "must be auto, auto:FLOOR, off, or a number of seconds above 0"
        raise ConfigError("--hang-timeout", text, problem)
    if is_floor:
        return HangLimits(floor_seconds=seconds)
    return HangLimits(fixed_seconds=seconds, paused_seconds=max(HangLimits().paused_seconds, seconds))


class StepTimes:
    """What one rank's steps have taken, and how long it may be silent. Kept over restarts."""

    def __init__(self, limits: HangLimits) -> None:
        self._limits = limits
        self._gaps: deque[float] = deque(maxlen=_GAPS_KEPT)
        self._last: Beat | None = None
        self._has_paused = False

    @property
    def typical_seconds(self) -> float | None:
        """The median step; None while too little is known."""
        return statistics.median(self._gaps) if len(self._gaps) >= _GAPS_NEEDED else None

    def see(self, beat: Beat) -> None:
        """Learn from a look; several steps between two looks count with their mean."""
        last, self._last = self._last, beat
        if beat.phase is not Phase.TRAINING:
            self._has_paused = True  # the time to the next step is no step's
        if last is None or beat.steps == last.steps:
            return
        if last.steps > 0 and beat.steps > last.steps and not self._has_paused:
            steps = beat.steps - last.steps
            self._gaps.extend([(beat.step_seconds - last.step_seconds) / steps] * min(steps, _GAPS_KEPT))
        self._has_paused = False

    def begin_attempt(self) -> None:
        """Another process writes the pulse from now on."""
        self._last, self._has_paused = None, False

    def limit_seconds(self, phase: Phase) -> float:
        """How long a rank in this phase may be silent."""
        limits = self._limits
        if phase is Phase.STARTING:
            return max(limits.starting_seconds, limits.fixed_seconds or 0.0)
        if phase is not Phase.TRAINING:
            return limits.paused_seconds
        if limits.fixed_seconds is not None:
            return limits.fixed_seconds
        typical = self.typical_seconds
        if typical is None:
            return limits.paused_seconds
        return max(limits.floor_seconds, limits.multiple * typical, limits.pause_multiple * max(self._gaps))


def silent_seconds(beat: Beat, now: float) -> float:
    """For how long nothing has been heard of a rank; 0 for one that has never said anything."""
    newest = max(beat.step_seconds, beat.phase_seconds)
    return now - newest if newest > 0 else 0.0
