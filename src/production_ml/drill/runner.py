"""Running a drill: once without faults, then once for each fault, and a verdict on each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import ProductionMLError
from production_ml.drill.faults import FAULTS
from production_ml.drill.faults.base import Fault, FaultUnavailableError, Strike
from production_ml.drill.final_weights import compare_weights
from production_ml.drill.scene import SavedCheckpoint, Scene
from production_ml.drill.target import Target
from production_ml.drill.verdict import (
    Course,
    Verdict,
    course,
    first_sign,
    first_step_after,
    shortcoming,
)
from production_ml.monitoring.run_log import RunLog

_POLL_SECONDS = 0.01
_LEAST_LIMIT_SECONDS = 60.0
_LIMIT_FACTOR = 6.0
"""A run that takes so many times as long as the one without faults is taken for stuck."""


class DrillError(ProductionMLError):
    """The drill itself cannot be held: the script fails without faults, or tells of no steps."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The run without faults."""

    course: Course
    seconds: float
    """From the launcher's start to its end."""
    checkpoints: Sequence[SavedCheckpoint]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A fault that this machine does not let a drill cause."""

    fault: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a drill."""

    script: Path
    seed: int
    reference: Reference
    verdicts: tuple[Verdict, ...]
    unavailable: tuple[Unavailable, ...]

    @property
    def is_survived(self) -> bool:
        """Whether the script came through every fault that was caused."""
        return all(verdict.is_survived for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {
            "script": str(self.script),
            "seed": self.seed,
            "reference_seconds": self.reference.seconds,
            "steps": len(self.reference.course.steps),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "unavailable": {missing.fault: missing.why for missing in self.unavailable},
        }


class Observer(Protocol):
    """Is told of a drill while it is held."""

    def running(self, what: str) -> AbstractContextManager[Callable[[Scene], None]]:
        """While a run goes on; gives what is called with its scene now and then."""
        ...

    def reference(self, reference: Reference) -> None:
        """The run without faults is over."""
        ...

    def verdict(self, found: Verdict | Unavailable) -> None:
        """One fault has been judged."""
        ...


def hold(
    target: Target, names: Sequence[str], directory: Path, *, seed: int, repeat: int, observer: Observer
) -> Outcome:
    """Run the script without faults, and then `repeat` times under each of them.

    Raises:
        DrillError: It fails without any fault, or logs no steps.
    """
    with observer.running("without faults") as watch:
        reference = run_reference(target, directory / "reference", watch)
    observer.reference(reference)
    found: list[Verdict | Unavailable] = []
    for number, name in enumerate([*names] * repeat):
        own_seed = seed + number
        with observer.running(name) as watch:
            place = directory / f"{name}-{own_seed}"
            found.append(run_fault(name, target, reference, place, seed=own_seed, watch=watch))
        observer.verdict(found[-1])
    return Outcome(
        script=target.script,
        seed=seed,
        reference=reference,
        verdicts=tuple(one for one in found if isinstance(one, Verdict)),
        unavailable=tuple(one for one in found if isinstance(one, Unavailable)),
    )


def run_reference(target: Target, directory: Path, watch: Callable[[Scene], None] = lambda _: None) -> Reference:
    """Run the script without faults.

    Args:
        target: The script.
        directory: Where; must not exist.
        watch: Called now and then while it runs.

    Raises:
        DrillError: It fails, or logs no steps.
    """
    started = SYSTEM_CLOCK.monotonic_seconds()
    with Scene(target, directory) as scene:
        scene.start()
        while scene.exit_code is None:
            scene.poll()
            watch(scene)
            time.sleep(_POLL_SECONDS)
        scene.poll()
    seconds = SYSTEM_CLOCK.monotonic_seconds() - started
    if scene.exit_code != 0:
        raise DrillError(
            f"{target.script} fails without any fault: exit code {scene.exit_code}.",
            meaning=scene.last_lines(),
            cure=f"All it printed is in {scene.output}. It runs in a directory of its own: a relative path to its data "
            "is written {cwd}/data in the script's arguments.",
        )
    found = course(RunLog.open(scene.run.path))
    if found is None:
        raise DrillError(
            f"{target.script} logs no steps, so nobody can tell how far it is.",
            cure='Give it a TrainingMonitor and monitor.log({"train/loss": loss}, step); see docs/quick-start.md.',
        )
    return Reference(found, seconds, scene.checkpoints)


def run_fault(
    name: str,
    target: Target,
    reference: Reference,
    directory: Path,
    *,
    seed: int,
    watch: Callable[[Scene], None] = lambda _: None,
) -> Verdict | Unavailable:
    """Run the script under one fault, at a random rank and a step in the middle third.

    Args:
        name: Of the family `FAULTS`.
        target: The script.
        reference: Its run without faults.
        directory: Where; must not exist.
        seed: Decides rank, step and whatever else is left to chance.
        watch: Called now and then while it runs.
    """
    fault = FAULTS.load(name)()
    strike = choose_strike(target, reference.course, seed)
    with Scene(target, directory) as scene:
        try:
            fault.arrange(scene, strike)
            scene.start()
            struck = _follow(scene, fault, strike, reference, watch)
        except FaultUnavailableError as problem:
            return Unavailable(name, problem.what)
        finally:
            scene.end()
            fault.lift(scene)
        scene.poll()
        return _judge(name, fault, scene, strike, struck, reference, seed)


def choose_strike(target: Target, of: Course, seed: int) -> Strike:
    """A random rank and a step of the middle third, where there is something to lose and something left to do."""
    chance = random.Random(seed)  # noqa: S311 - no secret: the seed is printed
    first, last = min(of.steps), of.final_step
    third = max(1, (last - first) // 3)
    return Strike(
        rank=chance.randrange(target.workers), step=chance.randint(first + third, last - third), chance=chance
    )


@dataclass(frozen=True, slots=True)
class _Struck:
    at: float | None
    """Wall seconds; None where it never came to it."""
    attempt: int
    exit_code: int | None


def _follow(
    scene: Scene, fault: Fault, strike: Strike, reference: Reference, watch: Callable[[Scene], None]
) -> _Struck:
    """Follow the run to its end, strike on the way, and start it again where a scheduler would."""
    limit = SYSTEM_CLOCK.monotonic_seconds() + max(_LEAST_LIMIT_SECONDS, _LIMIT_FACTOR * reference.seconds)
    struck_at: float | None = None
    struck_attempt = 0
    was_requeued = False
    while SYSTEM_CLOCK.monotonic_seconds() < limit:
        scene.poll()
        watch(scene)
        if struck_at is None and scene.reached(strike.rank) >= strike.step:
            struck_at, struck_attempt = SYSTEM_CLOCK.wall_seconds(), scene.attempt
            fault.strike(scene, strike)
        if scene.exit_code is not None:
            if not fault.is_requeued or was_requeued or struck_at is None:
                return _Struck(struck_at, struck_attempt, scene.exit_code)
            was_requeued = True
            scene.start()
        time.sleep(_POLL_SECONDS)
    return _Struck(struck_at, struck_attempt, None)


def _judge(
    name: str, fault: Fault, scene: Scene, strike: Strike, struck: _Struck, reference: Reference, seed: int
) -> Verdict:
    facts = {"fault": name, "seed": seed, "rank": strike.rank, "step": strike.step}
    if struck.at is None:
        why = f"the fault did not strike: the run ended with exit code {struck.exit_code} before step {strike.step}"
        return Verdict(**facts, is_survived=False, why=f"{why}\n{scene.last_lines()}")  # type: ignore[arg-type]
    log = RunLog.open(scene.run.path)
    found = course(log)
    struck_at = scene.struck_marker.stat().st_mtime if scene.struck_marker.exists() else struck.at
    try:
        weights = compare_weights(reference.checkpoints, scene.checkpoints) if struck.exit_code == 0 else None
        why = shortcoming(
            exit_code=struck.exit_code,
            of=found,
            reference=reference.course,
            weights=weights,
            keeps_weights=fault.keeps_weights,
        )
    except ProductionMLError as problem:
        weights, why = None, f"the last checkpoint cannot be compared: {problem.what}"
    sign = first_sign(log, fault.signs, since=struck_at)
    recovered_at = first_step_after(log, since=sign[1] if sign else struck_at, struck_attempt=struck.attempt)
    return Verdict(
        **facts,  # type: ignore[arg-type]
        is_survived=not why,
        why=why,
        detected_by=sign[0] if sign else None,
        detected_seconds=sign[1] - struck_at if sign else None,
        recovered_seconds=recovered_at - struck_at if recovered_at is not None else None,
        steps_redone=found.steps_redone if found else None,
        steps_lost=len(reference.course.steps - found.steps) if found else None,
        weights_are_equal=weights.are_equal if weights else None,
        goodput_ratio=reference.course.training_seconds / found.training_seconds if found and not why else None,
    )
