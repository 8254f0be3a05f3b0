"""torch.distributed.checkpoint with its own state dict API: plain, with threads, and asynchronous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint._fsspec_filesystem  # noqa: F401 - else the first save of each fork imports it
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ..training import Training
from .base import Loaded, Saver, StepPlaces


def _state(training: Training, step: int) -> dict[str, Any]:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"step": step, "model": model, "optimizer": optimizer, "notes": training.notes.state_dict()}


class _DcpSaver:
    def __init__(self, system: Dcp, root: Path, training: Training) -> None:
        self._system, self._root, self._training = system, root, training

    def save(self, step: int) -> None:
        self._system.write(_state(self._training, step), self._system.place(self._root, step))
        self._prune()

    def wait(self) -> None:
        """It is done when `save` returns."""

    def close(self) -> None:
        """There is nothing to end."""

    def _prune(self) -> None:
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_rank() == 0:
            self._system.prune(self._root)


class _AsyncSaver(_DcpSaver):
    _future: Any = None

    def save(self, step: int) -> None:
        self.wait()
        place = self._system.place(self._root, step)
        self._future = dcp.async_save(_state(self._training, step), checkpoint_id=place)

    def wait(self) -> None:
        if self._future is not None:
            future, self._future = self._future, None
            getattr(future, "upload_completion", future).result()
            self._prune()

    def close(self) -> None:
        self.wait()


class Dcp(StepPlaces):
    name = "dcp"
    is_multi_rank = True
    # Its own error is no Exception: a training that catches those alone would end here.
    errors = (Exception, CheckpointException)

    def saver(self, root: Path, training: Training) -> Saver:
        return _DcpSaver(self, root, training)

    def write(self, state: dict[str, Any], path: Path) -> None:
        """As its examples do."""
        dcp.save(state, checkpoint_id=path)

    def load_newest(self, root: Path, training: Training) -> Loaded:
        def load(path: Path) -> tuple[int, int]:
            state = _state(training, 0)
            dcp.load(state, checkpoint_id=path)
            set_state_dict(
                training.model,
                training.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
            )
            training.notes.load_state_dict(state["notes"])
            return int(state["step"]), training.notes.who

        # Its loader fills the tensors that are there, so they have to be there: moments, and a history of that length.
        training.go_to(99, 9)
        return self.newest_loadable(root, load)


class DcpThreads(Dcp):
    name = "dcp, 4 threads"

    def write(self, state: dict[str, Any], path: Path) -> None:
        """With its writer's own option to be faster."""
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path, thread_count=4))


class DcpAsync(Dcp):
    name = "dcp, async"

    def saver(self, root: Path, training: Training) -> Saver:
        return _AsyncSaver(self, root, training)
