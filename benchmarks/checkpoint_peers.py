"""The libraries that save and load the same training: ours, torch.save, safetensors, DCP, Lightning, accelerate.

A save is over when it is durable; what a library does not fsync itself is fsynced for it. A load is over when the live
model and optimizer hold every byte in memory of their own.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from checkpoint_floors import fsync_tree
from checkpoint_states import Training, give_state
from checkpoint_timing import OURS
from production_ml.fault_tolerance import CheckpointManager


class Peer(Protocol):
    """A library. `path` holds what the newest save wrote."""

    path: Path

    def save(self) -> None: ...

    def load(self) -> None: ...


class Ours:
    """production_ml: verified on save and on load."""

    def __init__(self, training: Training, directory: Path) -> None:
        self.path = directory
        self._training = training
        self._step = 0
        # What is old is removed between the measurements, as it is for the others.
        self.manager = CheckpointManager(directory, keep_last_n=1_000_000, save_best=False)

    def save(self) -> None:
        self.begin_save()
        self.manager.wait()

    def begin_save(self) -> None:
        self._step += 1
        self.manager.save(model=self._training.model, optimizer=self._training.optimizer, step=self._step)

    def load(self) -> None:
        self.manager.load_latest(self._training.model, self._training.optimizer)


class TorchSave:
    """One pickle of tensors."""

    def __init__(self, training: Training, directory: Path, *, mmap: bool = False) -> None:
        self.path = directory
        self._training = training
        self._mmap = mmap

    def save(self) -> None:
        self.path.mkdir()
        torch.save(_state(self._training), self.path / "state.pt")
        fsync_tree(self.path)

    def load(self) -> None:
        state = torch.load(self.path / "state.pt", mmap=self._mmap, weights_only=True)
        _place(self._training, state, is_mapped=self._mmap)


class Safetensors:
    """One safetensors file of all tensors; step counts and options are not in it."""

    def __init__(self, training: Training, directory: Path) -> None:
        self.path = directory
        self._training = training

    def save(self) -> None:
        self.path.mkdir()
        safetensors.torch.save_file(_flat(self._training), self.path / "state.safetensors")
        fsync_tree(self.path)

    def load(self) -> None:
        loaded = safetensors.torch.load_file(self.path / "state.safetensors")
        if not self._training.optimizer.state:
            give_state(self._training.optimizer)
        with torch.no_grad():
            for name, tensor in _flat(self._training).items():
                tensor.copy_(loaded[name])


class Dcp:
    """torch.distributed.checkpoint, which loads in place."""

    def __init__(self, training: Training, directory: Path, *, threads: int = 1) -> None:
        self.path = directory
        self._training = training
        self._threads = threads

    def save(self) -> None:
        writer = dcp.FileSystemWriter(self.path, sync_files=True, thread_count=self._threads)
        with quiet():
            dcp.save(_state(self._training), storage_writer=writer)

    def load(self) -> None:
        if not self._training.optimizer.state:
            give_state(self._training.optimizer)
        state = _state(self._training)
        with quiet():
            dcp.load(state, storage_reader=dcp.FileSystemReader(self.path))
        self._training.optimizer.load_state_dict(state["optimizer"])


class Lightning:
    """Fabric's save and load of model and optimizer."""

    def __init__(self, training: Training, directory: Path) -> None:
        from lightning.fabric import Fabric

        self.path = directory
        self._training = training
        with quiet():
            self._fabric = Fabric(accelerator="cpu", devices=1)

    def save(self) -> None:
        self.path.mkdir()
        with quiet():
            self._fabric.save(self.path / "state.ckpt", self._objects())
        fsync_tree(self.path)

    def load(self) -> None:
        with quiet():
            self._fabric.load(self.path / "state.ckpt", self._objects())

    def _objects(self) -> dict[str, Any]:
        return {"model": self._training.model, "optimizer": self._training.optimizer}


class Accelerate:
    """Accelerator.save_state and load_state: safetensors for the model, a pickle for the optimizer."""

    def __init__(self, training: Training, directory: Path) -> None:
        from accelerate import Accelerator

        self.path = directory
        self._accelerator = Accelerator(cpu=True)
        self._accelerator.prepare(training.model, training.optimizer)

    def save(self) -> None:
        with quiet():
            self._accelerator.save_state(str(self.path))
        fsync_tree(self.path)

    def load(self) -> None:
        with quiet():
            self._accelerator.load_state(str(self.path))


def peers(training: Training, directory: Path, *, threads: int) -> dict[str, Peer]:
    """All that are installed, by name."""
    found: dict[str, Peer] = {
        OURS: Ours(training, directory / "ours"),
        "torch.save": TorchSave(training, directory / "torch"),
        "safetensors": Safetensors(training, directory / "safetensors"),
        "DCP": Dcp(training, directory / "dcp"),
        f"DCP, {threads} threads": Dcp(training, directory / "dcp-threads", threads=threads),
    }
    for name, kind in (("Lightning", Lightning), ("accelerate", Accelerate)):
        with contextlib.suppress(ImportError):
            found[name] = kind(training, directory / name.lower())
    return found


def remove(peer: Peer) -> None:
    """Delete what a peer has saved."""
    shutil.rmtree(peer.path, ignore_errors=True)


def _state(training: Training) -> dict[str, Any]:
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def _flat(training: Training) -> dict[str, torch.Tensor]:
    flat = dict(training.model.state_dict())
    for index, held in training.optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{index}.{key}": held[key] for key in ("exp_avg", "exp_avg_sq")}
    return flat


def _place(training: Training, state: Mapping[str, Any], *, is_mapped: bool) -> None:
    """load_state_dict() keeps the tensors it is given; those of a mapped file have to be read and owned first."""
    training.model.load_state_dict(state["model"])
    if is_mapped:
        for held in state["optimizer"]["state"].values():
            held.update({key: value.clone() for key, value in held.items()})
    training.optimizer.load_state_dict(state["optimizer"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of what is meant here, such as saving without a process group."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
