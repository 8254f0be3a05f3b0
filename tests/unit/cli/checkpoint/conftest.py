"""What the tests of the checkpoint commands share: a directory with three checkpoints, and a way to run commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from production_ml.cli import checkpoint


@pytest.fixture
def run():
    """Run `checkpoint …` in this process; our errors come out as they are."""
    app = typer.Typer()
    checkpoint.register(app)

    def invoke(*arguments: object):
        command = ["checkpoint", *map(str, arguments)]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200", "TERM": "dumb"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture(scope="session")
def root_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from torch import nn

    from production_ml.fault_tolerance import CheckpointManager

    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with CheckpointManager(path) as manager:
        for step, loss in ((100, 0.5), (200, 0.1), (300, 0.3)):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            metrics = {"loss": loss, "odd": float("nan")}
            manager.save(model=model, optimizer=optimizer, step=step, metrics=metrics, epoch=step // 100, note="[red]x")
    return path


@pytest.fixture
def root(root_once: Path, tmp_path: Path) -> Path:
    """Steps 100, 200 (the best) and 300, of the test's own."""
    return Path(shutil.copytree(root_once, tmp_path / "checkpoints"))


@pytest.fixture
def shard() -> Callable[[Path, int], Path]:
    return lambda root, step: root / f"step-{step:08d}" / "rank-00000.safetensors"


@pytest.fixture
def damage(shard) -> Callable[[Path, int], None]:
    """Flip the last bit of a checkpoint."""

    def flip(root: Path, step: int) -> None:
        data = bytearray(shard(root, step).read_bytes())
        data[-1] ^= 1
        shard(root, step).write_bytes(data)

    return flip
