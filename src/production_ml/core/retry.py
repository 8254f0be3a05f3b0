"""The one way to try again: pauses that grow and are random, an end in tries and in time, and a word to the log."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ConfigError
from production_ml.core.redaction import redact_text
from production_ml.core.structured_logging import log_event

_LOG: Final = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often, and for how long.

    Pause n is drawn from 0 to `first_pause_seconds` · 2ⁿ ("full jitter": Brooker, AWS Architecture Blog, 2015). Where
    thousands of ranks were turned away together, they must not come back together.
    """

    tries: int = 10
    """The first one included."""
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 20.0
    budget_seconds: float = 180.0
    """No try begins later than this after the first; one that is under way is not interrupted."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError("tries", self.tries, "must be at least 1: the first try counts")
        for name in ("first_pause_seconds", "longest_pause_seconds", "budget_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must not be negative")

    def longest_pause(self, failures: int) -> float:
        """The most seconds to wait after that many failures."""
        return float(min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(failures - 1, 60)))


class Retry:
    """Calls again what failed for a reason that may pass.

    The last error is raised as it is, with a note that says how often and for how long it was tried; whoever has to
    tell the user knows better what it means.

    Args:
        policy: How often, and for how long.
        is_transient: Whether an error may pass by itself. Errors that it does not vouch for are raised at once.
        clock: For the budget.
        pause: Sleeps for seconds.
        draw: Draws a number between two others.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        is_transient: Callable[[Exception], bool],
        clock: Clock = SYSTEM_CLOCK,
        pause: Callable[[float], object] = time.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.policy = policy
        self._is_transient = is_transient
        self._clock = clock
        self._pause = pause
        self._draw = draw

    def call(self, what: str, attempt: Callable[[], Result]) -> Result:
        """The result of the first `attempt` that succeeds.

        Args:
            what: What is tried, for the log.
            attempt: Does it; has to be safe to do twice.

        Raises:
            Exception: That of the last attempt.
        """
        started = self._clock.monotonic_seconds()
        failures = 0
        while True:
            try:
                return attempt()
            except Exception as problem:
                failures += 1
                pause_seconds = self._next_pause(problem, failures, started)
                if pause_seconds is None:
                    raise
                shown = redact_text(f"{type(problem).__name__}: {problem}")
                log_event(
                    _LOG,
                    "retry",
                    f"{what} failed ({shown}); trying again in {pause_seconds:.2f} s.",
                    level=logging.WARNING,
                    what=what,
                    error=shown,
                    failures=failures,
                    pause_seconds=round(pause_seconds, 3),
                )
            self._pause(pause_seconds)

    def _next_pause(self, problem: Exception, failures: int, started: float) -> float | None:
        """Seconds to wait, or None where this was the last try."""
        if not self._is_transient(problem):
            return None
        pause_seconds = self._draw(0.0, self.policy.longest_pause(failures))
        elapsed = self._clock.monotonic_seconds() - started
        if failures >= self.policy.tries or elapsed + pause_seconds > self.policy.budget_seconds:
            problem.add_note(f"Given up after {failures} tries in {elapsed:.1f} s.")
            return None
        return pause_seconds
