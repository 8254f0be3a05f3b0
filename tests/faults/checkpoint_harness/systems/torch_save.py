"""`torch.save` as scripts call it, and as careful scripts do: to another name first, made durable, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..training import Training
from .base import Loaded, Saver, StepPlaces


def whole_state(training: Training, step: int) -> dict[str, Any]:
    """Everything, in one dictionary."""
    return {
        "step": step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "notes": training.notes.state_dict(),
    }


def take_over(training: Training, state: dict[str, Any]) -> tuple[int, int]:
    """Into the training; returns the step and who saved it."""
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.notes.load_state_dict(state["notes"])
    return int(state["step"]), training.notes.who


class _FileSaver:
    def __init__(self, system: TorchSave, root: Path, training: Training) -> None:
        self._system, self._root, self._training = system, root, training

    def save(self, step: int) -> None:
        self._root.mkdir(exist_ok=True)
        self._system.write(whole_state(self._training, step), self._system.place(self._root, step))
        self._system.prune(self._root)

    def wait(self) -> None:
        """It is done when `save` returns."""

    def close(self) -> None:
        """There is nothing to end."""


class TorchSave(StepPlaces):
    name = "torch.save"
    suffix = ".pt"

    def saver(self, root: Path, training: Training) -> Saver:
        return _FileSaver(self, root, training)

    def load_newest(self, root: Path, training: Training) -> Loaded:
        return self.newest_loadable(root, lambda path: take_over(training, torch.load(path, weights_only=True)))

    def write(self, state: dict[str, Any], path: Path) -> None:
        """Into its place at once."""
        torch.save(state, path)


class TorchSaveRenamed(TorchSave):
    name = "torch.save+rename"
    hides_unfinished = True

    def write(self, state: dict[str, Any], path: Path) -> None:
        """Durable under another name, then renamed."""
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
