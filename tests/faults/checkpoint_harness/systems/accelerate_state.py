"""accelerate's `save_state` and `load_state`."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from ..training import Training
from .base import Loaded, Saver, StepPlaces


class _AcceleratorSaver:
    def __init__(self, system: Accelerate, root: Path, training: Training) -> None:
        self._system, self._root = system, root
        self._accelerator = prepared(training)

    def save(self, step: int) -> None:
        self._accelerator.save_state(str(self._system.place(self._root, step)))
        self._system.prune(self._root)

    def wait(self) -> None:
        """It is done when `save` returns."""

    def close(self) -> None:
        """There is nothing to end."""


class Accelerate(StepPlaces):
    name = "accelerate"

    def saver(self, root: Path, training: Training) -> Saver:
        return _AcceleratorSaver(self, root, training)

    def load_newest(self, root: Path, training: Training) -> Loaded:
        accelerator = prepared(training)

        def load(path: Path) -> tuple[int, int]:
            accelerator.load_state(str(path))
            return training.notes.step, training.notes.who

        return self.newest_loadable(root, load)


def prepared(training: Training) -> Accelerator:
    """An accelerator that knows all of the training; the training's own objects stay the ones in use."""
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(training.model, training.optimizer)
    accelerator.register_for_checkpointing(training.notes)
    return accelerator
