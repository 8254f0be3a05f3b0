"""Checkpoints for a training loop: saved beside it without tearing, verified on load, pruned by policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Literal

from torch import nn
from torch.optim import Optimizer

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.agreement import refused_on_all
from production_ml.fault_tolerance.checkpoint_arguments import (
    check_memory_settings,
    check_model_and_optimizer,
    check_not_a_step,
    check_progress,
    check_settings,
)
from production_ml.fault_tolerance.checkpoint_events import report_kept, report_loaded, report_nothing, report_saved
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration, plan_restoration
from production_ml.fault_tolerance.checkpoint_state.resume_state import ResumeState
from production_ml.fault_tolerance.full_checkpoints import FullCheckpoints
from production_ml.fault_tolerance.loading.newest_good import apply_on_all, search
from production_ml.fault_tolerance.loading.reading import Verify
from production_ml.fault_tolerance.loading.setting_aside import set_damaged_aside
from production_ml.fault_tolerance.memory_copies.found import NOTHING_FOUND, find_copies
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.retention import KeepBest, KeepLast, KeepPolicy, Pruning
from production_ml.fault_tolerance.save_schedule import SavePolicy, SaveSchedule, parse_save_every
from production_ml.fault_tolerance.saving.disk_pause import DiskPause
from production_ml.fault_tolerance.saving.draft import SaveInputs
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.save_in_flight import Committed
from production_ml.fault_tolerance.saving.saver import Saver
from production_ml.storage.durable import make_directory_durably
from production_ml.training.ranks import rank_and_world_size

_LOG: Final = logging.getLogger(__name__)


class CheckpointManager:
    """Saves and loads a training's state; every rank makes one and calls it at the same steps.

    A checkpoint exists when its manifest is durable, and nothing is loaded that differs from it in a single bit. Works
    for a plain module, DDP and FSDP2 (`fully_shard`), and a checkpoint of one world size loads into another. Plain
    tensors, metrics and extras are those of rank 0. It may be used as a context manager.

    Args:
        checkpoint_dir: Where checkpoints are kept: a directory that all ranks share, which is made if need be, or
            the URL of an object store such as `s3://bucket/run`, whose credentials come from the environment.
        keep_last_n: How many of the newest to keep.
        save_best: Keep the best one too, by `best_metric`.
        best_metric: The name in `metrics`; a checkpoint where it is missing or NaN is never the best.
        best_mode: Whether the least or the greatest is best.
        keep: Further policies, such as `KeepEvery(n=10_000)` for milestones; what any policy wants is kept.
        save_every: When `save_if_due` saves: every so many steps, every so often (a timedelta), `"auto"` for the
            interval that loses the least time by what saves cost here and how often this run fails (Young 1974), or a
            policy.
        full_every: At the end of how many epochs `save_if_due` makes a full checkpoint; they are all kept. 0 for none;
            by default each epoch's in a directory, and none in an object store, where there can be none.
        verify: What `load_latest` compares with its hashes: `"full"` every byte, `"sampled"` a random sixteenth,
            `"off"` none. Sizes, headers and the manifest are compared always.
        asynchronous: Write in the background while training goes on. `save` then takes as long as a copy in memory.
        defer_copies: Copy what the optimizers change after `save` has returned, but before their next `step()`, beside
            forward and backward. A change in place by other means is noticed, and costs that checkpoint. One through
            `.data` or numpy, which torch does not count, is noticed by a sample of each tensor; where training changes
            a few elements so between `save` and `step()`, give False: then `save` copies everything before it returns.
            Writing stays in the background.
        memory_copies: How many of the newest steps, saved by `save` or `save_to_memory`, are kept in memory as well. A
            process beside each rank keeps them while the launcher lives, so that a worker that crashed resumes from the
            newest in memory; a job of several nodes keeps them on a second node too. For K steps it takes the memory of
            K + 1 times the rank's share of the state; with several nodes at most K + 3 times, and twice that of a
            rank of another node. Without a launcher nobody comes after the script, and they end with it.
        memory_every: At each multiple of so many steps `save_if_due` saves to memory, where nothing is due on the disk.

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
        keep: Sequence[KeepPolicy] = (),
        save_every: int | timedelta | Literal["auto"] | SavePolicy = "auto",
        full_every: int | None = None,
        verify: Verify = "full",
        asynchronous: bool = True,
        defer_copies: bool = True,
        memory_copies: int = 0,
        memory_every: int | None = None,
    ) -> None:
        check_settings(
            keep=keep,
            best_metric=best_metric,
            save_best=save_best,
            asynchronous=asynchronous,
            defer_copies=defer_copies,
            verify=verify,
        )
        check_memory_settings(memory_copies, memory_every)
        policies: list[KeepPolicy] = [KeepLast(n=keep_last_n), *keep]
        if save_best:
            policies.append(KeepBest(metric=best_metric, mode=best_mode))
        self._verify = verify
        self._directory = _prepared(open_place(checkpoint_dir))
        self._pruning = Pruning(self._directory, policies)
        self._best_metric = best_metric if save_best else None
        self._full = FullCheckpoints(self._directory, every=full_every)
        self._pause = self._disk_pause()
        self._schedule = SaveSchedule(parse_save_every(save_every))
        # Who decides alone when to save is told nothing of intervals, and pays no message for them.
        self._follows_schedule = False
        self._memory_copies = memory_copies
        self._memory_every = memory_every
        self._saver = Saver(
            self._directory,
            asynchronous=asynchronous,
            on_commit=self._follow_up,
            disk_pause=self._pause,
            memory_copies=memory_copies,
            defer_copies=defer_copies,
        )

    def save(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        full: bool = False,
        **extra_state: Any,
    ) -> None:
        """Save the state as it is now. When this returns, training may go on.

        Parameters and optimizer state may still be copied until the next `optimizer.step()`, which waits for it. To
        change them by other means before that, make the manager with `defer_copies=False`.

        It waits for the save before it, for there is at most one under way. Every rank has to call it.

        Args:
            model: The model; DDP and torch.compile wrappers are seen through.
            optimizer: Its optimizer, if it is to be resumed.
            step: The number that `load_latest` gives back; save the number of completed steps.
            metrics: Numbers or tensors of one element; the best checkpoint is chosen by them.
            full: Also write the model's weights whole, into `full/step-….safetensors`, which any tool can open.
            **extra_state: Whatever else is to be resumed: numbers, strings, tensors, arrays and nestings of them, and
                objects with `state_dict()` and `load_state_dict()` (an LR scheduler, a sampler, an EMA model).

        A full disk is no error: saving is paused with an alert in the log (`checkpoint_paused`), and goes on by itself.

        Raises:
            CheckpointWriteError: This save cannot be made, on this rank or another, or the one before it failed in the
                background; then this one was not tried. The newest committed checkpoint is unchanged either way, and a
                later save may work.
            CheckpointError: Another rank does not save at all, but loads.
            ConfigError: An argument is not what its name says, or an extra has a name that is taken.
        """
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        inputs = SaveInputs(model, optimizer, step, {} if metrics is None else metrics, extra_state)
        refusal = self._full.want(full, step)
        try:
            numbers = self._saver.save(inputs, refusal=refusal)
        finally:
            self._full.give_up_all_but(self._saver.step_under_way)
        if numbers is None and self._memory_copies:
            # The disk is full; memory is not.
            self._saver.save(inputs, on_disk=False)
        if numbers is not None:
            self._warn_of_missing_metric(numbers)
        if self._follows_schedule and numbers is not None:
            self._schedule.saved(step, stall_seconds=SYSTEM_CLOCK.monotonic_seconds() - started_seconds)
        elif self._follows_schedule:
            self._schedule.missed(step)

    def save_if_due(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        epoch_ended: int | None = None,
        **extra_state: Any,
    ) -> bool:
        """Save as `save` does, if `save_every` says that it is time. Call it after every step, on every rank.

        Where nothing is due it costs less than a microsecond, and ranks exchange no message.

        Args:
            model: As for `save`, and so are the others that are not listed here.
            optimizer: As for `save`.
            step: As for `save`.
            metrics: As for `save`.
            epoch_ended: The epoch that this step has ended, counted from 1: at the end of every `full_every`-th a full
                checkpoint is made, whatever `save_every` says. None within an epoch.
            **extra_state: As for `save`.

        Returns:
            Whether a save to the disk is due; the same on all ranks.

        Raises:
            ProductionMLError: As `save` does.
        """
        if type(step) is not int or epoch_ended is not None:
            # Raised at once, for nothing can be told from these about whether the other ranks save now: to wait for
            # them could take for ever, and a launcher ends them when this one ends.
            check_progress(step, epoch_ended)
        self._follows_schedule = True
        full = self._full.is_due(epoch_ended)
        if not self._schedule.is_due(step) and not full:
            if self._memory_every and step % self._memory_every == 0:
                self.save_to_memory(model=model, optimizer=optimizer, step=step, metrics=metrics, **extra_state)
            return False
        self.save(model=model, optimizer=optimizer, step=step, metrics=metrics, full=full, **extra_state)
        return True

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
        inputs = SaveInputs(model, optimizer, step, {} if metrics is None else metrics, extra_state)
        self._saver.save(inputs, on_disk=False)

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
            CheckpointError: The checkpoint cannot be read for a reason that is not damage, such as missing rights; or
                another rank refuses its arguments, or does not load at all, but saves.
            ConfigError: An extra is not an object whose state can be loaded, or the model or optimizer is none.
        """
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        self._saver.join()
        with refused_on_all(call="load_latest, its arguments"):
            check_model_and_optimizer(model, optimizer)
            copies = find_copies(MeetingPlace.of(self._directory.url)) if self._memory_copies else NOTHING_FOUND
        rank, world_size = rank_and_world_size()

        def plan(manifest: Manifest) -> Restoration:
            return plan_restoration(manifest, model, optimizer, extra, rank=rank, world_size=world_size)

        found = search(self._directory, plan, rank=rank, world_size=world_size, verify=self._verify, copies=copies)
        if rank == 0:
            set_damaged_aside(self._directory, found)
        if optimizer is not None:
            self._saver.expect_training(model, optimizer)
        by_place = (found.misnamed, *found.damaged_copies.values(), *found.damaged.values())
        damaged = [damage for damage_there in by_place for damage in damage_there]
        resumed_step = 0 if found.newest_good is None else found.newest_good.manifest.step
        self._saver.forget(copies.forget_all_but(resumed_step, found.damaged_copies))
        if found.newest_good is None:
            if rank == 0 and not damaged:
                report_nothing(self._directory)
            return ResumeState({"step": 0, "metrics": {}}, damaged)
        manifest = found.newest_good.manifest
        self._schedule.resumed(manifest.step)
        extras = apply_on_all(found.newest_good)
        if rank == 0:
            duration_seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
            report_loaded(self._directory, manifest.step, found.newest_good.source, duration_seconds)
        return ResumeState({"step": manifest.step, "metrics": dict(manifest.metrics), **extras}, damaged)

    @property
    def is_paused(self) -> bool:
        """Whether saves are left out because the disk is full; rank 0 knows it."""
        return self._pause is not None and self._pause.is_paused

    def wait(self) -> None:
        """Return when the save under way is committed, on every rank, and on rank 0 all that follows it is done.

        That is its full checkpoint, and the pruning of older ones: the directory is then as it will stay.

        Raises:
            CheckpointWriteError: It failed. The newest committed checkpoint is unchanged.
        """
        try:
            self._saver.wait()
        finally:
            self._full.give_up_all_but(self._saver.step_under_way)

    def close(self) -> None:
        """Wait for the save under way, and give its memory back. Calling it twice is no error.

        Raises:
            CheckpointWriteError: The save under way failed.
        """
        try:
            self._saver.close()
        finally:
            self._full.give_up_all_but(self._saver.step_under_way)

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

    def _disk_pause(self) -> DiskPause | None:
        """A store has no disk of ours to fill up."""
        if not isinstance(self._directory, CheckpointDirectory):
            return None
        return DiskPause(self._directory.path, make_room=lambda step: self._pruning.make_room(coming=step))

    def _follow_up(self, committed: Committed, duration_seconds: float, stall_seconds: float) -> None:
        if not committed.on_disk:
            report_kept(committed, duration_seconds, stall_seconds)
            return
        # First what is true whatever becomes of the rest.
        self._schedule.written()
        report_saved(self._directory, committed, duration_seconds, stall_seconds)
        self._full.write(committed.step)
        self._pruning.prune(just_committed=committed.step)

    def _warn_of_missing_metric(self, metrics: Mapping[str, float]) -> None:
        if self._best_metric is not None and self._best_metric not in metrics:
            _LOG.warning(
                "save_best=True, but metrics has no %r: no checkpoint without it is kept as the best. "
                "Pass it to save(metrics=...), name another with best_metric=..., or set save_best=False.",
                self._best_metric,
            )
            self._best_metric = None  # said once


def _prepared(place: CheckpointPlace) -> CheckpointPlace:
    """The place, made if need be: a path that cannot work is better found before the first hour of training."""
    if isinstance(place, CheckpointDirectory):
        check_not_a_step(place.path)
        try:
            make_directory_durably(place.path)
        except OSError as problem:
            meaning = "Nothing was saved or loaded, and nothing is lost."
            raise write_error(f"{place.path}: cannot be a checkpoint directory", problem, meaning=meaning) from problem
    return place
