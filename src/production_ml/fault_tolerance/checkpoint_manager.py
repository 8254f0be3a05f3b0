"""Checkpoints for a training loop: saved beside it without tearing, verified on load, pruned by policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from torch import nn
from torch.optim import Optimizer

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.agreement import rank_and_world_size
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration, plan_restoration
from production_ml.fault_tolerance.checkpoint_state.resume_state import ResumeState
from production_ml.fault_tolerance.loading.damage_report import describe
from production_ml.fault_tolerance.loading.newest_good import Search, apply_on_all, search
from production_ml.fault_tolerance.memory_copies.found import NOTHING_FOUND, find_copies
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.record import copy_name
from production_ml.fault_tolerance.retention import KeepBest, KeepLast, Pruning
from production_ml.fault_tolerance.saving.draft import SaveInputs
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.save_in_flight import Committed
from production_ml.fault_tolerance.saving.saver import Saver

_LOG: Final = logging.getLogger(__name__)


class CheckpointManager:
    """Saves and loads a training's state; every rank makes one and calls it at the same steps.

    A checkpoint exists when its manifest is durable, and nothing is loaded that differs from it in a single bit. Works
    for a plain module, DDP and FSDP2 (`fully_shard`), and a checkpoint of one world size loads into another. Plain
    tensors, metrics and extras are those of rank 0. It may be used as a context manager.

    Args:
        checkpoint_dir: Where checkpoints are kept; all ranks have to share it. It is made if it is not there.
        keep_last_n: How many of the newest to keep.
        save_best: Keep the best one too, by `best_metric`.
        best_metric: The name in `metrics`; a checkpoint where it is missing or NaN is never the best.
        best_mode: Whether the least or the greatest is best.
        asynchronous: Write in the background while training goes on. `save` then takes as long as a copy in memory.
        memory_copies: How many of the newest steps, saved by `save` or `save_to_memory`, are kept in memory as well. A
            process beside each rank keeps them while the launcher lives, so that a worker that crashed resumes from the
            newest in memory; a job of several nodes keeps them on a second node too. For K steps it takes the memory of
            K + 1 times the rank's share of the state; with several nodes at most K + 3 times, and twice that of a
            rank of another node. Without a launcher nobody comes after the script, and they end with it.

    Raises:
        ConfigError: An argument has a value that cannot work.
        CheckpointWriteError: `checkpoint_dir` cannot be made, or is a file.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        keep_last_n: int = 3,
        save_best: bool = True,
        *,
        best_metric: str = "loss",
        best_mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
        memory_copies: int = 0,
    ) -> None:
        keep_last, keep_best = KeepLast(n=keep_last_n), KeepBest(metric=best_metric, mode=best_mode)
        self._directory = CheckpointDirectory(_prepared(checkpoint_dir))
        self._pruning = Pruning(self._directory, [keep_last, keep_best] if save_best else [keep_last])
        self._best_metric = best_metric if save_best else None
        self._memory_copies = _checked_copies(memory_copies)
        self._saver = Saver(
            self._directory, asynchronous=asynchronous, on_commit=self._follow_up, memory_copies=memory_copies
        )

    def save(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        **extra_state: Any,
    ) -> None:
        """Save the state as it is now. When this returns, training may change everything.

        It waits for the save before it, for there is at most one under way. Every rank has to call it.

        Args:
            model: The model; DDP and torch.compile wrappers are seen through.
            optimizer: Its optimizer, if it is to be resumed.
            step: The number that `load_latest` gives back; save the number of completed steps.
            metrics: Numbers or tensors of one element; the best checkpoint is chosen by them.
            **extra_state: Whatever else is to be resumed: numbers, strings, tensors, arrays and nestings of them, and
                objects with `state_dict()` and `load_state_dict()` (an LR scheduler, a sampler, an EMA model).

        Raises:
            CheckpointWriteError: This save cannot be made, on this rank or another, or the one before it failed in the
                background; then this one was not tried. The newest committed checkpoint is unchanged either way, and a
                later save may work.
            CheckpointError: Another rank does not save at all, but loads.
            ConfigError: A step or metric is not a number, or an extra has a name that is taken.
        """
        metrics = self._saver.save(SaveInputs(model, optimizer, step, metrics or {}, extra_state))
        self._warn_of_missing_metric(metrics)

    def save_to_memory(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        **extra_state: Any,
    ) -> None:
        """Save the state as it is now, but in memory alone.

        After a crash of a worker the steps since then are redone, after one of the machine those since the last `save`.
        It takes training as long as `save` does, and needs no disk: call it often, and `save` seldom. Arguments and
        rules are those of `save`.

        Raises:
            ConfigError: `memory_copies` is 0; or as `save`.
            CheckpointWriteError: As `save`; or the memory for it is not there.
            CheckpointError: As `save`.
        """
        if not self._memory_copies:
            cure = "Make the manager with CheckpointManager(..., memory_copies=2), say."
            raise ConfigError("memory_copies", 0, "save_to_memory() has nowhere to keep the state", cure=cure)
        self._saver.save(SaveInputs(model, optimizer, step, metrics or {}, extra_state), on_disk=False)

    def load_latest(self, model: nn.Module, optimizer: Optimizer | None = None, **extra: Any) -> ResumeState:
        """Load the newest checkpoint that is good on all ranks, from memory or disk. Every rank has to call it.

        Every byte is verified before the model, the optimizer or an extra is touched. Damaged checkpoints are moved to
        `quarantine/` and told of in a warning. Where none is good, training starts from step 0, with a loud warning,
        and nothing is deleted.

        Args:
            model: Gets the saved parameters and buffers in place; its sharding may differ from the saved one.
            optimizer: Gets its saved state and options, such as `lr`.
            **extra: Objects that were saved under these names; their state is loaded in place.

        Returns:
            The step, the metrics and every extra by name. An object that was saved by its state comes back as that
            state where it is not among `extra`.

        Raises:
            CheckpointMismatchError: The checkpoint does not fit, on this rank or another; the message names the
                parameter and both shapes. Model and optimizer are unchanged, but where an extra of another rank refused
                its state: then theirs is loaded here already.
            CheckpointError: The checkpoint cannot be read for a reason that is not damage, such as missing rights, or
                another rank does not load at all, but saves.
            ConfigError: An extra is not an object whose state can be loaded.
        """
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        self._saver.join()
        rank, world_size = rank_and_world_size()

        def plan(manifest: Manifest) -> Restoration:
            return plan_restoration(manifest, model, optimizer, extra)

        copies = find_copies(MeetingPlace.of(self._directory.path)) if self._memory_copies else NOTHING_FOUND
        found = search(self._directory, plan, rank=rank, world_size=world_size, copies=copies)
        if rank == 0:
            self._set_damaged_aside(found)
            self._report_damaged_copies(found)
        by_place = (*found.damaged_copies.values(), *found.damaged.values())
        damaged = [damage for damage_there in by_place for damage in damage_there]
        resumed_step = 0 if found.newest_good is None else found.newest_good.manifest.step
        self._saver.forget(copies.forget_all_but(resumed_step, found.damaged_copies))
        if found.newest_good is None:
            return ResumeState({"step": 0, "metrics": {}}, damaged)
        manifest = found.newest_good.manifest
        extras = apply_on_all(found.newest_good)
        if rank == 0:
            duration_seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
            self._report_loaded(manifest.step, found.newest_good.source, duration_seconds)
        return ResumeState({"step": manifest.step, "metrics": dict(manifest.metrics), **extras}, damaged)

    def wait(self) -> None:
        """Return when the save under way is committed, on every rank.

        Raises:
            CheckpointWriteError: It failed. The newest committed checkpoint is unchanged.
        """
        self._saver.wait()

    def close(self) -> None:
        """Wait for the save under way, and give its memory back. Calling it twice is no error.

        Raises:
            CheckpointWriteError: The save under way failed.
        """
        self._saver.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._saver.leave_soon()
        try:
            self.close()
        except CheckpointWriteError:
            # Already in the log; the script's own error is the one to show.
            _LOG.debug("a save failed while the script was failing", exc_info=True)

    def _set_damaged_aside(self, found: Search) -> None:
        resumed_step = found.newest_good.manifest.step if found.newest_good else None
        for step, damage in found.damaged.items():
            kept_in = self._quarantine(step, damage)
            message = describe(step, damage, resumed_step=resumed_step, kept_in=kept_in, directory=self._directory.path)
            first = damage[0]
            log_event(
                _LOG,
                "checkpoint_damaged",
                message,
                level=logging.WARNING,
                step=step,
                file=first.file,
                tensor=first.tensor,
                problem=first.problem,
                quarantined_to=str(kept_in) if kept_in else None,
            )

    def _quarantine(self, step: int, damage: list[Damage]) -> Path | None:
        found_at = iso_utc(SYSTEM_CLOCK.wall_seconds())
        reason = {"step": step, "found_at": found_at, "damage": [found.to_dict() for found in damage]}
        try:
            return self._directory.quarantine(step, reason)
        except OSError as problem:
            # A disk that is mounted read-only after an error: resuming matters more than tidiness.
            _LOG.warning("%s: cannot be moved to quarantine (%s)", self._directory.committed(step), problem.strerror)
            return None

    def _report_damaged_copies(self, found: Search) -> None:
        resumed_step = found.newest_good.manifest.step if found.newest_good else 0
        for damage in found.damaged_copies.values():
            first = damage[0]
            log_event(
                _LOG,
                "checkpoint_damaged",
                f"{first}\nThe copy of step {first.step} in memory is passed over. Resuming from step {resumed_step}.\n"
                "Memory that flips bits damages training too: look for corrected and uncorrected errors (edac-util, "
                "rasdaemon).",
                level=logging.WARNING,
                step=first.step,
                file=first.file,
                tensor=first.tensor,
                problem=first.problem,
                quarantined_to=None,
            )

    def _report_loaded(self, step: int, source: str, duration_seconds: float) -> None:
        path = str(self._directory.committed(step)) if source == "disk" else copy_name(step)
        where = path if source == "disk" else "in memory" if source == "memory" else "in another node's memory"
        log_event(
            _LOG,
            "checkpoint_loaded",
            f"Resuming from step {step} ({where})",
            step=step,
            source=source,
            duration_seconds=duration_seconds,
            path=path,
        )

    def _follow_up(self, committed: Committed, duration_seconds: float, stall_seconds: float) -> None:
        if not committed.on_disk:
            log_event(
                _LOG,
                "checkpoint_kept",
                f"Keeping step {committed.step} in memory",
                level=logging.DEBUG,
                step=committed.step,
                duration_seconds=duration_seconds,
                stall_seconds=stall_seconds,
                size_bytes=committed.size_bytes,
            )
            return
        try:
            self._pruning.prune(just_committed=committed.step)
        finally:
            path = str(self._directory.committed(committed.step))
            log_event(
                _LOG,
                "checkpoint_saved",
                f"Saved step {committed.step} to {path}",
                step=committed.step,
                duration_seconds=duration_seconds,
                stall_seconds=stall_seconds,
                size_bytes=committed.size_bytes,
                path=path,
            )

    def _warn_of_missing_metric(self, metrics: Mapping[str, float]) -> None:
        if self._best_metric is not None and self._best_metric not in metrics:
            _LOG.warning(
                "save_best=True, but metrics has no %r: no checkpoint without it is kept as the best. "
                "Pass it to save(metrics=...), name another with best_metric=..., or set save_best=False.",
                self._best_metric,
            )
            self._best_metric = None  # said once


def _checked_copies(memory_copies: Any) -> int:
    if isinstance(memory_copies, bool) or not isinstance(memory_copies, int) or memory_copies < 0:
        raise ConfigError("memory_copies", memory_copies, "must be a whole number of steps, or 0 for none")
    return memory_copies


def _prepared(checkpoint_dir: str | os.PathLike[str]) -> Path:
    """The directory, made if need be: a path that cannot work is better found before the first hour of training."""
    try:
        path = Path(checkpoint_dir)
    except TypeError:
        raise ConfigError("checkpoint_dir", checkpoint_dir, "must be a path") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        meaning = "Nothing was saved or loaded, and nothing is lost."
        raise write_error(f"{path}: cannot be a checkpoint directory", problem, meaning=meaning) from problem
    return path
