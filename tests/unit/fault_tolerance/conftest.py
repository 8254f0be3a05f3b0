"""What the checkpoint tests share: a small trained model, and shares of ranks that need no process group."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_writing import write_shard_file
from production_ml.fault_tolerance.saving.commit import carry_out, hash_shard
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import Holding, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.fault_tolerance.saving.shard_plan import ShardPlan, ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging
from production_ml.storage.hashing import hash_bytes

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


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank writes, and the memory that holds it."""

    order: SaveOrder
    image: ShardImage

    def carry_out(self, patience: Patience | None = None) -> Manifest | None:
        """Write it in this process."""
        return carry_out(self.order, self.image.data, patience or Patience())


@pytest.fixture
def share_of(directory: CheckpointDirectory) -> Iterator[Callable[..., Share]]:
    """The share of one rank in a save, as all ranks would have agreed to."""
    with contextlib.ExitStack() as at_end:

        def make(
            step: int = 1,
            *,
            rank: int = 0,
            world_size: int = 1,
            tensors: dict[str, torch.Tensor] | None = None,
            holdings: list[Holding] | None = None,
            save_id: str = "00ff",
            metrics: dict[str, float] | None = None,
            rank_values: object = None,
        ) -> Share:
            given = {"x": torch.arange(4.0)} if tensors is None else tensors
            contents = None if holdings is None else ShardContents.of(tuple(holdings))
            staging = Staging()
            at_end.callback(staging.close)
            plan = ShardPlanner(rank=0).plan(given)
            if contents is not None:
                plan = ShardPlan(contents, plan.data, plan.owners, plan.fingerprint)
            staging.begin(plan, frozenset()).run()
            order = SaveOrder(
                directory=directory,
                step=step,
                save_id=save_id,
                rank=rank,
                world_size=world_size,
                metrics=metrics or {},
                values={"model": {}, "optimizer": None, "extra": {}},
                rank_values=rank_values,
                contents=plan.contents,
            )
            return Share(order, staging.image)

        yield make


@pytest.fixture(scope="session")
def write_tensors() -> Callable[[Path, dict[str, torch.Tensor]], tuple[FileEntry, Mapping[str, tuple[str, ...]]]]:
    """Write a shard of whole tensors; gives what a manifest says of it."""

    def write(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[FileEntry, Mapping[str, tuple[str, ...]]]:
        staging = Staging()
        plan = ShardPlanner(rank=0).plan(tensors)
        staging.begin(plan, frozenset()).run()
        image, layout = staging.image.data, plan.contents.layout
        image[: len(layout.header)] = layout.header
        write_shard_file(path, image, layout.size_bytes)
        hashes = hash_shard(image, layout)
        del image
        staging.close()
        return FileEntry(size_bytes=layout.size_bytes, header_hash=hash_bytes(layout.header)), hashes

    return write


@pytest.fixture
def commit_step(directory: CheckpointDirectory, share_of: Callable[..., Share]) -> Callable[..., None]:
    """Commit a checkpoint of one rank."""

    def commit(step: int = 1, *, save_id: str = "00ff", **given: Any) -> None:
        lock = directory.begin(step, save_id)
        share_of(step, save_id=save_id, **given).carry_out()
        lock.release()

    return commit


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


def _is_asleep(thread: threading.Thread) -> bool:
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.fixture
def interrupted() -> Callable[[Callable[[], object]], bool]:
    """Tells whether a Ctrl-C ended a call; it comes when the call waits."""

    def call_and_interrupt(call: Callable[[], object]) -> bool:
        has_begun = threading.Event()

        def interrupt() -> None:
            has_begun.wait(60)
            while not _is_asleep(threading.main_thread()):
                pass
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        try:
            has_begun.set()
            call()
        except KeyboardInterrupt:
            return True
        finally:
            interrupter.join()
        return False

    return call_and_interrupt
