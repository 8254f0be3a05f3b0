"""Run logs as a drilled script and its launcher write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import EventRecord, MetricsRecord, RunLog, Source, SourcedRecord

Moment = tuple[str, int, float]


def source(role: str, attempt: int) -> Source:
    return Source(
        role=role, rank=0, world_size=1, attempt=attempt, node="n", pid=1, owner_pid=1, owner_start=1, started_at=0.0
    )


@pytest.fixture
def log_of(tmp_path: Path) -> Callable[..., RunLog]:
    """A log of steps, as (attempt, step, wall seconds), and of the launcher's events, as (name, attempt, seconds)."""

    def build(steps: list[tuple[int, int, float]], events: list[Moment] = []) -> RunLog:  # noqa: B006 - only read
        records = [
            SourcedRecord(source("rank", attempt), MetricsRecord(step, wall_seconds, {"train/loss": 1.0}))
            for attempt, step, wall_seconds in steps
        ]
        records += [
            SourcedRecord(source("launcher", 0), EventRecord(name, wall_seconds, fields={"attempt": attempt}))
            for name, attempt, wall_seconds in events
        ]
        records.sort(key=lambda sourced: sourced.record.wall_seconds)
        identity = RunIdentity(project="p", experiment="e", run_id="r")
        return RunLog(RunDirectory(tmp_path), identity, records)

    return build
