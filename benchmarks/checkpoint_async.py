"""Saving beside a running training: our manager and DCP's async_save, each with what it asks of the loop."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from checkpoint_peers import quiet
from checkpoint_states import Training
from checkpoint_timing import OURS
from production_ml.fault_tolerance import CheckpointManager

ASYNC_SAVERS = (OURS, "DCP async_save", "DCP async_save, cached", "DCP async_save, staged behind")


class AsyncSaver(Protocol):
    """Saves while training goes on."""

    def save(self) -> None: ...

    def before_step(self) -> None:
        """What the loop must call before `optimizer.step()`, by the library's own documentation."""
        ...

    def wait(self) -> None: ...


class OurSaver:
    """production_ml: the loop calls save() and nothing else."""

    def __init__(self, training: Training, directory: Path) -> None:
        self._training = training
        self._step = 0
        self._manager = CheckpointManager(directory, keep_last_n=1, save_best=False)

    def save(self) -> None:
        self._step += 1
        self._manager.save(model=self._training.model, optimizer=self._training.optimizer, step=self._step)

    def before_step(self) -> None:
        """The manager's own hook sees to it."""

    def wait(self) -> None:
        self._manager.wait()

    def close(self) -> None:
        self._manager.close()


class DcpSaver:
    """DCP's async_save.

    Args:
        training: What is saved.
        directory: Where.
        stager: Copies into memory that is kept between saves, perhaps behind forward/backward.
    """

    def __init__(self, training: Training, directory: Path, *, stager: DefaultStager | None = None) -> None:
        self._training = training
        self._directory = directory
        self._stager = stager
        self._staged: Future[Any] | None = None
        self._uploaded: Future[Any] | None = None

    def save(self) -> None:
        state = {"model": self._training.model.state_dict(), "optimizer": self._training.optimizer.state_dict()}
        writer = dcp.FileSystemWriter(self._directory, sync_files=True)
        with quiet():
            found = dcp.async_save(state, storage_writer=writer, async_stager=self._stager)
        if isinstance(found, Future):
            self._uploaded = found
        else:
            self._staged, self._uploaded = found.staging_completion, found.upload_completion

    def before_step(self) -> None:
        if self._staged is not None:
            self._staged.result()

    def wait(self) -> None:
        if self._uploaded is not None:
            self._uploaded.result()
            shutil.rmtree(self._directory)  # it warns of a checkpoint in its place, and overwrites file by file
        self._staged = self._uploaded = None

    def close(self) -> None:
        self.wait()
        if self._stager is not None:
            self._stager.close()


@contextlib.contextmanager
def async_savers(
    training: Training, directory: Path, *, names: tuple[str, ...] = ASYNC_SAVERS
) -> Iterator[dict[str, AsyncSaver]]:
    """Those of these names; DCP wants a process group, and gets one of a single rank."""
    place = directory / "async"
    makers: dict[str, Callable[[], OurSaver | DcpSaver]] = {
        OURS: lambda: OurSaver(training, place / "ours"),
        "DCP async_save": lambda: DcpSaver(training, place / "dcp"),
        "DCP async_save, cached": lambda: DcpSaver(training, place / "dcp-cached", stager=_stager(behind=False)),
        "DCP async_save, staged behind": lambda: DcpSaver(training, place / "dcp-staged", stager=_stager(behind=True)),
    }
    with one_rank_group(), contextlib.ExitStack() as stack:
        savers = {name: make() for name, make in makers.items() if name in names}
        for saver in savers.values():
            stack.callback(saver.close)
        yield dict(savers)
    shutil.rmtree(place, ignore_errors=True)


def _stager(*, behind: bool) -> DefaultStager:
    """Copies into shared memory that is kept, pinned where there is a GPU, behind the training or at once."""
    on_cuda = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_cuda, use_shared_memory=True, use_async_staging=behind, use_non_blocking_copy=on_cuda
        )
    )


@contextlib.contextmanager
def one_rank_group() -> Iterator[None]:
    """A gloo group of this process alone."""
    with tempfile.TemporaryDirectory() as directory:
        store = dist.FileStore(f"{directory}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
