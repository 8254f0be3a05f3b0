"""Before a save is under way: what this rank would write, and what of it has to be copied before training goes on."""

from __future__ import annotations

import contextlib
import operator
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_arguments import check_objects
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace, Claim
from production_ml.fault_tolerance.checkpoint_state.capture import Captured, capture
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache
from production_ml.fault_tolerance.saving.order import SaveOrder, write_error
from production_ml.fault_tolerance.saving.save_in_flight import report_failure
from production_ml.fault_tolerance.saving.shard_plan import ShardPlan, ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging, Transfer


@dataclass(frozen=True, slots=True)
class SaveInputs:
    """What the training loop gave."""

    model: nn.Module
    optimizer: Optimizer | None
    step: int
    metrics: Mapping[str, Any]
    extra: Mapping[str, Any]


class SavingIsPausedError(Exception):
    """The disk is full, which the log tells already; training goes on without this checkpoint."""


@dataclass(frozen=True, slots=True)
class SaveDraft:
    """What one rank has ready."""

    order: SaveOrder
    transfer: Transfer
    lock: Claim | None
    """Rank 0's, on the directory that it made."""
    fingerprint: str
    """Of the model and optimizer; ranks whose models differ cannot make one checkpoint."""

    def abandon(self) -> None:
        """Leave no trace of it."""
        if self.lock is not None:
            with contextlib.suppress(OSError):
                self.order.directory.abandon(self.order.written)
            self.lock.release()


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafting:
    """What drafts are made with; it is kept from save to save."""

    directory: CheckpointPlace
    planner: ShardPlanner
    staging: Staging
    rank: int
    world_size: int
    admits: Callable[[int, int], bool] | None = None
    """Rank 0's: whether there is room for a step of so many bytes; None where nobody can tell."""
    cache: CaptureCache = field(default_factory=CaptureCache)
    on_disk: bool = True
    is_sent: bool = False

    def plan(self, inputs: SaveInputs) -> ShardPlan:
        """What this rank would write.

        Raises:
            CheckpointWriteError: Something cannot be saved.
        """
        return self._capture(inputs)[1]

    def _capture(self, inputs: SaveInputs) -> tuple[Captured, ShardPlan]:
        try:
            captured = capture(inputs.model, inputs.optimizer, inputs.extra, rank=self.rank, cache=self.cache)
            return captured, self.planner.plan(captured.tensors, captured.own_pieces(), captured.layout)
        except BaseException:
            # Interrupted, such as by Ctrl-C in a notebook, they may know one half of this model and one of the last.
            self.cache.forget()
            self.planner.forget()
            raise

    def prepare(self, plan: ShardPlan) -> None:
        """Have the memory for a plan ready before it is needed.

        Raises:
            OSError: The memory for it is not there.
        """
        if plan.contents.holdings:
            self.staging.reserve(plan.contents, for_devices=any(data.is_cuda for data in plan.data.values()))

    def draft(self, inputs: SaveInputs, deferrable: Collection[int]) -> SaveDraft:
        """Plan this rank's share, copy what must be copied now, and on rank 0 make the directory for all ranks.

        Args:
            inputs: What to save.
            deferrable: The `id`s of the tensors that may be copied later.

        Raises:
            CheckpointWriteError: Something cannot be saved, or the directory cannot be made.
            ConfigError: An argument is not what its name says, or an extra has a name that is taken.
            SavingIsPausedError: There is no room for it.
        """
        step, metrics = parse_step(inputs.step), parse_metrics(inputs.metrics)
        check_objects(inputs.model, inputs.optimizer, inputs.extra)
        lock: Claim | None = None
        save_id = secrets.token_hex(8)
        try:
            captured, plan = self._capture(inputs)
            if self.on_disk:
                self._check_room(step, plan)
            lock = self.directory.begin(step, save_id) if self.rank == 0 and self.on_disk else None
            transfer = self.staging.begin(plan, deferrable)
        except SavingIsPausedError:
            raise
        except BaseException as problem:
            if lock is not None:
                with contextlib.suppress(OSError):
                    self.directory.abandon(self.directory.incomplete(step, save_id))
                lock.release()
            told = self._told(step, problem)
            if told is problem:
                raise  # an error that is its own cause would be a circle
            raise told from problem
        order = SaveOrder(
            directory=self.directory,
            step=step,
            save_id=save_id,
            rank=self.rank,
            world_size=self.world_size,
            metrics=metrics,
            values=captured.values if self.rank == 0 else None,
            rank_values=captured.rank_values,
            contents=plan.contents,
            on_disk=self.on_disk,
            is_sent=self.is_sent,
        )
        return SaveDraft(order, transfer, lock, plan.fingerprint)

    def _check_room(self, step: int, plan: ShardPlan) -> None:
        if self.admits is not None and not self.admits(step, plan.contents.layout.size_bytes):
            raise SavingIsPausedError

    def _told(self, step: int, problem: BaseException) -> BaseException:
        """The error to raise; those that mean that there is no checkpoint are in the log too."""
        if isinstance(problem, OSError):
            what = f"The checkpoint of step {step} could not be written to {self.directory.url}"
            problem = write_error(what, problem)
        if isinstance(problem, CheckpointWriteError):
            report_failure(step, problem)
        return problem


def parse_step(step: Any) -> int:
    """The step as a number.

    Raises:
        ConfigError: It is none, or negative.
    """
    if isinstance(step, bool):
        raise ConfigError("step", step, "must be a whole number")
    try:
        number = operator.index(step)
    except TypeError:
        raise ConfigError("step", step, "must be a whole number") from None
    if number < 0:
        raise ConfigError("step", step, "must not be negative")
    return number


def parse_metrics(metrics: Any) -> dict[str, float]:
    """The metrics as numbers; NaN and infinities are numbers here.

    Raises:
        ConfigError: One of them is neither a number nor a tensor of one element, or they have no names.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError("metrics", metrics, "must be a dict", cure='Give {"loss": loss}, say.')
    parsed = {}
    for name, value in metrics.items():
        try:
            parsed[str(name)] = _number(value)
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"metrics[{name!r}]", value, "must be a number or a tensor of one element") from None
    return parsed


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(value)
    return float(value.detach() if isinstance(value, torch.Tensor) else value)
