"""Run directories as a real run would have left them, written by the real writer at times that the test chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import RunLogWriter, Source

START = 1_767_268_800.0
"""2026-01-01 12:00 UTC."""


class SyntheticRun:
    """A run whose ranks and launcher write what the test tells them, at `START` plus the seconds it says.

    Args:
        path: The run directory; it is made.
        world_size: How many ranks each attempt says it has.
        node: The host's name that the sources carry; no real host by default, so that nobody asks whether it lives.
    """

    def __init__(
        self,
        path: Path,
        *,
        project: str = "shop",
        experiment: str = "exp-001",
        run_id: str = "20260101-120000-abc123",
        world_size: int = 2,
        node: str = "synthetic-node",
    ) -> None:
        self.run = RunDirectory(path)
        self.run.create()
        self.identity = self.run.claim(RunIdentity(project=project, experiment=experiment, run_id=run_id))
        self._world_size = world_size
        self._node = node
        self._now = START
        self._writers: dict[tuple[str, int, int], RunLogWriter] = {}

    def metrics(self, at: float, step: int, values: Mapping[str, float], *, rank: int = 0, attempt: int = 0) -> None:
        """One `log()` call of a rank, `at` seconds after the start."""
        self._writer(at, "rank", rank, attempt).metrics(step, tuple(values), tuple(values.values()))

    def event(self, at: float, name: str, *, rank: int = 0, attempt: int = 0, **fields: Any) -> None:
        """An event of a rank; `fields` may hold step, level and message."""
        self._writer(at, "rank", rank, attempt).event(name, **fields)

    def launcher_event(self, at: float, name: str, **fields: Any) -> None:
        """An event of the launcher."""
        self._writer(at, "launcher", 0, 0).event(name, **fields)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> SyntheticRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wall_seconds(self) -> float:
        """The time of the record that is being written: the run is its writers' clock."""
        return self._now

    def monotonic_seconds(self) -> float:
        return self._now - START

    def _writer(self, at: float, role: str, rank: int, attempt: int) -> RunLogWriter:
        self._now = START + at
        key = (role, rank, attempt)
        if key not in self._writers:
            name = role if role == "launcher" else f"{role}-{rank:05d}"
            source = self._source(role, rank, attempt)
            self._writers[key] = RunLogWriter(lambda: self.run.run_log(name, attempt), source, clock=self)
        return self._writers[key]

    def _source(self, role: str, rank: int, attempt: int) -> Source:
        return Source(
            role=role,
            rank=rank,
            world_size=self._world_size,
            attempt=attempt,
            node=self._node,
            pid=1000 + 10 * attempt + rank,
            owner_pid=999,
            owner_start=1,
            started_at=self._now,
        )


def write_recovered_run(
    path: Path, *, steps: int = 300, killed_at: int = 140, save_every: int = 20, seconds_per_step: float = 0.05
) -> SyntheticRun:
    """A launched run of two ranks: rank 1 is killed in step `killed_at`, training resumes and finishes.

    Its log also holds a NaN, an alert, a slow rank, and a checkpoint every `save_every` steps.
    """
    resumed_from = (killed_at - 1) // save_every * save_every
    with SyntheticRun(path) as run:
        run.launcher_event(0.0, "attempt_started", attempt=0, world_size=2, worker_pids={"0": 1000, "1": 1001})
        config: dict[str, Any] = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 64, "api_key": "***"}
        _start(run, 1.2, 0, "run_started", config)
        killed = _train(run, 1.4, range(killed_at), 0, save_every, seconds_per_step)
        _fail(run, killed + 0.3)
        _start(run, killed + 0.7, 1, "run_restarted", config)
        loaded: dict[str, Any] = {"duration_seconds": 0.012, "path": f"checkpoints/step-{resumed_from:09d}"}
        for rank in range(2):
            run.event(killed + 0.8, "checkpoint_loaded", rank=rank, attempt=1, step=resumed_from, **loaded)
        end = _train(run, killed + 0.95, range(resumed_from, steps), 1, save_every, seconds_per_step)
        for rank in range(2):
            run.event(end + 0.1, "monitor_closed", rank=rank, attempt=1)
        run.launcher_event(end + 0.2, "launch_finished", outcome="succeeded", exit_code=0)
    return run


def _start(run: SyntheticRun, at: float, attempt: int, name: str, config: Mapping[str, Any]) -> None:
    facts: dict[str, Any] = {
        "command": ["train.py", "--steps", "300"],
        "python": "3.11.2",
        "torch": "2.13.0",
        "host": "h1",
        "cpus": 2,
    }
    for rank in range(2):
        run.event(at + 0.01 * rank, name, rank=rank, attempt=attempt, config=dict(config), **facts)


def _fail(run: SyntheticRun, at: float) -> None:
    facts: dict[str, Any] = {
        "attempt": 0,
        "rank": 1,
        "local_rank": 1,
        "pid": 1001,
        "exit_code": -9,
        "signal": "SIGKILL",
    }
    message = "rank 1 (pid 1001) was ended by SIGKILL"
    run.launcher_event(at, "worker_failed", level="error", message=message, reason="killed by SIGKILL", **facts)
    run.launcher_event(at + 0.1, "restart_scheduled", message="restarting", attempt=1, restarts_left=2)
    run.launcher_event(at + 0.2, "attempt_started", attempt=1, world_size=2, worker_pids={"0": 1010, "1": 1011})


def _train(run: SyntheticRun, at: float, steps: range, attempt: int, save_every: int, step_seconds: float) -> float:
    """Returns when the last step ended."""
    for step in steps:
        at += step_seconds * (1.0 + 0.2 * math.sin(step / 9))
        for rank in range(2):
            values = _metrics(step, rank, step_seconds)
            run.metrics(at + 0.002 * rank, step, values, rank=rank, attempt=attempt)
        if step % 25 == 24:
            accuracy = {"val/accuracy": 0.97 - 0.85 * math.exp(-step / 60)}
            run.metrics(at + 0.004, step, accuracy, attempt=attempt)
        if step == 60 and attempt == 0:
            told: dict[str, Any] = {
                "level": "warning",
                "title": "Loss spiked",
                "message": "train/loss is 3 times its average",
            }
            run.event(at + 0.005, "alert", attempt=attempt, step=step, **told)
        died_while_saving = attempt == 0 and step + 1 == steps.stop
        if (step + 1) % save_every == 0 and not died_while_saving:
            _save(run, at + 0.006, step + 1, attempt)
    return at


def _metrics(step: int, rank: int, step_seconds: float) -> dict[str, float]:
    loss = 2.3 * math.exp(-step / 80) + 0.08 + 0.04 * math.sin(step * (1.7 + rank))
    rate = 64 / step_seconds * (1 - 0.15 * rank + 0.1 * math.sin(step / 7))
    loss = math.nan if step == 200 and rank == 0 else loss + (1.2 if step == 60 else 0.0)
    learning_rate = 0.001 * min(1.0, (step + 1) / 50)
    return {"train/loss": loss, "train/learning_rate": learning_rate, "train/samples_per_second": rate}


def _save(run: SyntheticRun, at: float, step: int, attempt: int) -> None:
    path = f"checkpoints/step-{step:09d}"
    cost: dict[str, Any] = {"duration_seconds": 0.031 + step * 1e-5, "stall_seconds": 0.0021, "size_bytes": 4_412_000}
    run.event(at, "checkpoint_saved", attempt=attempt, step=step, message=f"saved step {step}", path=path, **cost)
