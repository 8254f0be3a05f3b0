"""What the monitoring tests share: a run directory, a source, and an environment without a launcher."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity, process_start
from production_ml.monitoring.run_log import Source

_OTHERS = ("PRODUCTION_ML_", "TORCHELASTIC_", "SLURM_")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_OTHERS) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK"):
            monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that nothing has been logged to."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.claim(RunIdentity(project="shop", experiment="exp-001", run_id="r1"))
    return directory


@pytest.fixture
def source() -> Source:
    """This process, as a script that was started by hand."""
    pid = os.getpid()
    return Source(
        role="rank",
        rank=0,
        world_size=1,
        attempt=0,
        node="h1",
        pid=pid,
        owner_pid=pid,
        owner_start=process_start(pid),
        started_at=0.0,
    )
