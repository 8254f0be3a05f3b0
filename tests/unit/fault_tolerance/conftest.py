"""What the checkpoint tests share: a small trained model, and orders for ranks that need no process group."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.saving.order import SaveOrder
from production_ml.fault_tolerance.saving.shard_plan import Holding, plan_shard

Trained = tuple[nn.Module, torch.optim.Optimizer]


def build(seed: int = 0) -> Trained:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = model(torch.randn(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.fixture
def fresh() -> Callable[..., Trained]:
    """A model and its optimizer that have not been trained; another seed gives other weights."""
    return build


@pytest.fixture
def trained() -> Trained:
    """The same after two steps."""
    model, optimizer = build()
    for _ in range(2):
        train_step(model, optimizer)
    return model, optimizer


@pytest.fixture
def step_once() -> Callable[[nn.Module, torch.optim.Optimizer], torch.Tensor]:
    """One training step; gives the loss."""
    return train_step


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


@pytest.fixture
def order_of(directory: CheckpointDirectory) -> Callable[..., SaveOrder]:
    """An order for one rank of a save, as all ranks would have agreed to."""

    def make(
        step: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
        tensors: dict[str, torch.Tensor] | None = None,
        holdings: list[Holding] | None = None,
        save_id: str = "00ff",
        metrics: dict[str, float] | None = None,
    ) -> SaveOrder:
        given = {"x": torch.arange(4.0)} if tensors is None else tensors
        return SaveOrder(
            directory=directory,
            step=step,
            save_id=save_id,
            rank=rank,
            world_size=world_size,
            metrics=metrics or {},
            values={"model": {}, "optimizer": None, "extra": {}},
            holdings=plan_shard(given, rank=0).holdings if holdings is None else holdings,
            staged=given,
        )

    return make


_watching: list[tuple[Path, set[Path]]] = []
_hooks: list[object] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    for root, found in _watching if event in ("open", "os.listdir", "os.scandir") else []:
        if isinstance(arguments[0], str | os.PathLike) and Path(arguments[0]).is_relative_to(root):
            found.add(Path(arguments[0]))


@pytest.fixture
def touched() -> Callable[[Path], contextlib.AbstractContextManager[set[Path]]]:
    """Within it: which paths below a directory were opened or listed, whether they were there or not."""
    if not _hooks:  # Python takes no audit hook back
        sys.addaudithook(_note)
        _hooks.append(_note)

    @contextlib.contextmanager
    def watch(root: Path) -> Iterator[set[Path]]:
        found: set[Path] = set()
        _watching.append((root, found))
        try:
            yield found
        finally:
            _watching.remove((root, found))

    return watch
