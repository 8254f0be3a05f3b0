"""This project's checkpoints, by nothing but their public API and command line."""

from __future__ import annotations

import sys
from pathlib import Path

from production_ml.cli.main import main
from production_ml.core.errors import CheckpointWriteError, ExitCode, ProductionMLError
from production_ml.fault_tolerance import CheckpointManager

from ..training import Training
from .base import KEPT, Loaded, Saver


class _ManagerSaver:
    def __init__(self, root: Path, training: Training) -> None:
        self._training = training
        self._manager = CheckpointManager(root, keep_last_n=KEPT, save_best=False)

    def save(self, step: int) -> None:
        training = self._training
        self._manager.save(
            model=training.model,
            optimizer=training.optimizer,
            step=step,
            metrics={"loss": 1.0 / (step + 1)},
            notes=training.notes,
        )

    def wait(self) -> None:
        """Raises where there is no checkpoint, though a full disk is none of the manager's errors."""
        self._manager.wait()
        if self._manager.is_paused:
            raise CheckpointWriteError("Saving is paused: the disk is full.")

    def close(self) -> None:
        self._manager.close()


class Ours:
    name = "production_ml"
    is_multi_rank = True
    hides_unfinished = True
    errors: tuple[type[BaseException], ...] = (Exception,)

    def saver(self, root: Path, training: Training) -> Saver:
        return _ManagerSaver(root, training)

    def load_newest(self, root: Path, training: Training) -> Loaded:
        with CheckpointManager(root, keep_last_n=KEPT, save_best=False) as manager:
            state = manager.load_latest(training.model, training.optimizer, notes=training.notes)
        return Loaded(int(state["step"]), training.notes.who, [str(damage) for damage in state.damaged])

    def place(self, root: Path, step: int) -> Path:
        return root / f"step-{step:08d}"

    def is_own_error(self, kind: type[BaseException]) -> bool:
        return issubclass(kind, ProductionMLError)

    def says_sound(self, root: Path) -> bool | None:
        sys.argv = ["production-ml", "checkpoint", "verify", str(root)]
        try:
            main()
        except SystemExit as end:
            return end.code in (None, ExitCode.OK)
        return True
