"""Training stations: start the launcher, follow the run log, kill a worker for real, and check what became of it."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass

from production_ml.demo.children import Children, StationError, command_line
from production_ml.demo.display import Display, TrainingView
from production_ml.demo.workspace import Workspace, example_directory
from production_ml.monitoring.recoveries import Recovery, recoveries
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import MetricsRecord, RunLog, RunLogFollower, Source

WORKERS = 2
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to train."""

    model: str
    """`champion` or `challenger`: it names directories."""
    steps: int
    checkpoint_every: int
    width: int
    learning_rate: float
    seed: int

    def command(self, workspace: Workspace) -> list[str]:
        """The launcher's command line."""
        launch = ["launch", f"--nproc-per-node={WORKERS}", "--run-dir", str(workspace.run(self.model))]
        options = {
            "data": workspace.table,
            "checkpoints": workspace.checkpoints(self.model),
            "experiment": self.model,
            "steps": self.steps,
            "checkpoint-every": self.checkpoint_every,
            "width": self.width,
            "lr": self.learning_rate,
            "seed": self.seed,
        }
        settings = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return command_line(*launch, str(example_directory() / "train.py"), *settings)


@dataclass(frozen=True, slots=True)
class Kill:
    """Which worker is killed, and once it has logged which step."""

    rank: int
    step: int

    @classmethod
    def choose(cls, plan: Plan, chance: random.Random) -> Kill:
        """A random worker at a step of the first half, where there is a checkpoint to resume from, and work left to do.

        The second half is left alone because training does not wait for the one who watches it.
        """
        return cls(chance.randrange(WORKERS), chance.randint(3 * plan.checkpoint_every, plan.steps // 2))


class Watch:
    """What the run log has said so far about a training."""

    def __init__(self, run: RunDirectory) -> None:
        self._follower = RunLogFollower(run)
        self._attempt = -1
        self._sources: dict[int, Source] = {}
        self._steps: dict[int, int] = {}
        self._values: dict[str, float] = {}
        self._shown_step = -1

    def poll(self) -> None:
        """Read what is new."""
        for sourced in self._follower.poll():
            source, record = sourced.source, sourced.record
            if source.role != "rank" or source.attempt < self._attempt:
                continue
            if source.attempt > self._attempt:
                self._attempt = source.attempt
                self._sources.clear()
                self._steps.clear()
            self._sources[source.rank] = source
            if isinstance(record, MetricsRecord):
                self._steps[source.rank] = record.step
                if source.rank == 0:
                    self._values.update(record.values)

    @property
    def attempt(self) -> int:
        return self._attempt

    def reached(self, rank: int) -> int:
        """The newest step of `rank`, -1 before its first."""
        return self._steps.get(rank, -1)

    def pid(self, rank: int) -> int:
        """The process that is `rank` now."""
        return self._sources[rank].pid

    def view(self, steps: int) -> TrainingView:
        """The state for a display."""
        pids = [f"rank {rank}: pid {source.pid}" for rank, source in sorted(self._sources.items())]
        self._shown_step = max(self._steps.values(), default=self._shown_step)
        if self._steps:
            workers = "   ".join([f"attempt {self._attempt}", *pids])
        else:
            workers = "starting the workers" if self._attempt <= 0 else "starting the workers again"
        return TrainingView(
            step=self._shown_step + 1,
            steps=steps,
            loss=self._values.get("train/loss"),
            accuracy=self._values.get("validation/accuracy"),
            samples_per_second=self._values.get("train/samples_per_second"),
            workers=workers,
        )


def train(plan: Plan, workspace: Workspace, children: Children, display: Display, kill: Kill | None) -> RunLog:
    """Train `plan` in two workers; with `kill`, send one of them SIGKILL on the way.

    Returns:
        The log of the run, which has finished.

    Raises:
        StationError: It did not finish, or not at the step that was asked for.
    """
    run = RunDirectory(workspace.run(plan.model))
    launcher = children.start(plan.command(workspace), workspace.output(f"train-{plan.model}"))
    watch = Watch(run)
    while launcher.is_running:
        watch.poll()
        display.training(watch.view(plan.steps))
        if kill is not None and watch.reached(kill.rank) >= kill.step:
            _send_sigkill(watch, kill, display)
            kill = None
        time.sleep(_POLL_SECONDS)
    launcher.require_success()
    if kill is not None:
        raise StationError(
            f"Rank {kill.rank} was to be killed at step {kill.step}, but training ended first. When it was last looked "
            f"at, it had logged step {watch.reached(kill.rank)} in attempt {watch.attempt}: {run.path}"
        )
    watch.poll()
    for rank in range(WORKERS):
        if watch.reached(rank) != plan.steps - 1:
            raise StationError(f"Rank {rank} ended at step {watch.reached(rank)}, not at {plan.steps - 1}: {run.path}")
    return RunLog.open(run.path)


@dataclass(frozen=True, slots=True)
class Healed:
    """What the run log tells of the kill, and of failures that nobody asked for."""

    killed: Recovery
    others: tuple[Recovery, ...]
    """A machine under pressure may add some; they are healed in the same way, and told of."""


def check_recovery(log: RunLog, kill: Kill, plan: Plan) -> Healed:
    """The recovery from `kill` that the run log tells of.

    Raises:
        StationError: The log tells another story than that one SIGKILL and a resume from a checkpoint.
    """
    found = recoveries(log)
    of_kill = [healed for healed in found if (healed.failure.signal, healed.failure.rank) == ("SIGKILL", kill.rank)]
    if len(of_kill) != 1:
        told = "; ".join(f"rank {healed.failure.rank}: {healed.failure.reason}" for healed in found) or "none"
        raise StationError(f"{log.run.path}: rank {kill.rank} was killed once, but the log tells of failures: {told}.")
    recovery = of_kill[0]
    resumed = recovery.resumed_from_step
    checks = {
        f"it resumed from step {resumed}, where no checkpoint was made": resumed is not None
        and resumed > 0
        and resumed % plan.checkpoint_every == 0,
        f"it went on at step {recovery.first_step_after}, not at {resumed}": recovery.first_step_after == resumed,
    }
    for problem, is_fine in checks.items():
        if not is_fine:
            raise StationError(f"{log.run.path}: {problem}.")
    return Healed(recovery, tuple(healed for healed in found if healed is not recovery))


def _send_sigkill(watch: Watch, kill: Kill, display: Display) -> None:
    pid = watch.pid(kill.rank)
    os.kill(pid, signal.SIGKILL)
    display.fact(f"sent SIGKILL to rank {kill.rank} (pid {pid}) after it had logged step {watch.reached(kill.rank)}")
