"""What the interchange tests share: a training's checkpoint, and checkpoints whose tensors are cut into boxes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.interchange.builder import CheckpointBuilder

STEP = 300
Boxes = dict[tuple[int, ...], torch.Tensor]


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.fixture(scope="session")
def training() -> tuple[nn.Module, torch.optim.Optimizer]:
    """What was saved."""
    model, optimizer = build(0)
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="session")
def saved_once(training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, optimizer = training
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    with CheckpointManager(path) as manager:
        manager.save(
            model=model,
            optimizer=optimizer,
            step=STEP,
            metrics={"loss": 0.25},
            epoch=3,
            table=np.arange(6).reshape(2, 3),
            pair=(torch.ones(2), "a"),
        )
    return path


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> CheckpointDirectory:
    """A directory with the training's checkpoint, of the test's own."""
    return CheckpointDirectory(Path(shutil.copytree(saved_once, tmp_path / "saved")))


@pytest.fixture
def fresh() -> Callable[[], tuple[nn.Module, torch.optim.Optimizer]]:
    """A model and optimizer with other weights."""
    return lambda: build(1)


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., CheckpointDirectory]:
    """Make a checkpoint of tensors by name, each whole or as {offsets: box}, with the given shapes; a shard per box."""

    def make(
        tensors: dict[str, torch.Tensor | Boxes], step: int = 1, name: str = "cut", **shapes
    ) -> CheckpointDirectory:
        directory = CheckpointDirectory(tmp_path / name)
        with CheckpointBuilder(directory, step, shard_bytes=1) as builder:
            for tensor_name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    builder.add(tensor_name, tensor)
                    continue
                for offsets, box in tensor.items():
                    builder.add(tensor_name, box, offsets=offsets, shape=shapes[tensor_name])
            model = {key: {"$tensor": key} for key in tensors}
            builder.commit({"model": model, "optimizer": None, "extra": {}}, {})
        return directory

    return make


@pytest.fixture
def flip() -> Callable[[CheckpointDirectory], Path]:
    """Flip the last bit of the newest checkpoint's last shard."""

    def damage(directory: CheckpointDirectory) -> Path:
        path = max(directory.committed(directory.steps()[-1]).glob("*.safetensors"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return path

    return damage


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def listing() -> Callable[[Path], list[str]]:
    return names_in
