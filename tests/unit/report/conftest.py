"""Runs to report on: an empty one that a test fills, and one that was killed and recovered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from production_ml.monitoring.run_log import RunLog
from production_ml.report.story import RunStory, read_story
from production_ml.testing.synthetic_run import SyntheticRun, write_recovered_run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SyntheticRun]:
    with SyntheticRun(tmp_path / "run") as run:
        yield run


@pytest.fixture
def read(run: SyntheticRun) -> Callable[[], RunStory]:
    """What the report knows of `run` so far."""
    return lambda: read_story(RunLog.open(run.run.path))


@pytest.fixture(scope="session")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> RunStory:
    """Two ranks, 300 steps, one killed at step 140, resumed from 120."""
    path = tmp_path_factory.mktemp("recovered") / "run"
    write_recovered_run(path)
    return read_story(RunLog.open(path))
