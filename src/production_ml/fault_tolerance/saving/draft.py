"""Before a save is under way: what this rank would write, and the agreement of all ranks that it will be written."""

from __future__ import annotations

import contextlib
import operator
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.agreement import gather_json, told
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, write_error
from production_ml.fault_tolerance.saving.save_in_flight import report_failure
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging, Transfer


@dataclass(frozen=True, slots=True)
class SaveInputs:
    """What the training loop gave."""

    model: nn.Module
    optimizer: Optimizer | None
    step: int
    metrics: Mapping[str, Any]
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SaveDraft:
    """What one rank has ready."""

    order: SaveOrder
    transfer: Transfer
    lock: SaveLock | None
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

    directory: CheckpointDirectory
    planner: ShardPlanner
    staging: Staging
    rank: int
    world_size: int
    on_disk: bool = True
    is_sent: bool = False

    def draft(self, inputs: SaveInputs, deferrable: Collection[int]) -> SaveDraft:
        """Plan this rank's share, copy what must be copied now, and on rank 0 make the directory for all ranks.

        Args:
            inputs: What to save.
            deferrable: The `id`s of the tensors that may be copied later.

        Raises:
            CheckpointWriteError: Something cannot be saved, or the directory cannot be made.
            ConfigError: A step or metric is not a number, or an extra has a name that is taken.
        """
        step, metrics = parse_step(inputs.step), parse_metrics(inputs.metrics)
        lock: SaveLock | None = None
        save_id = secrets.token_hex(8)
        try:
            captured = capture(inputs.model, inputs.optimizer, inputs.extra)
            plan = self.planner.plan(captured.tensors)
            lock = self.directory.begin(step, save_id) if self.rank == 0 and self.on_disk else None
            transfer = self.staging.begin(plan, deferrable)
        except BaseException as problem:
            if lock is not None:
                with contextlib.suppress(OSError):
                    self.directory.abandon(self.directory.incomplete(step, save_id))
                lock.release()
            raise self._told(step, problem) from problem
        order = SaveOrder(
            directory=self.directory,
            step=step,
            save_id=save_id,
            rank=self.rank,
            world_size=self.world_size,
            metrics=metrics,
            values=captured.values if self.rank == 0 else None,
            rank_values=None,
            contents=plan.contents,
            on_disk=self.on_disk,
            is_sent=self.is_sent,
        )
        return SaveDraft(order, transfer, lock, plan.fingerprint)

    def _told(self, step: int, problem: BaseException) -> BaseException:
        """The error to raise; those that mean that there is no checkpoint are in the log too."""
        if isinstance(problem, OSError):
            what = f"The checkpoint of step {step} could not be written to {self.directory.path}"
            problem = write_error(what, problem)
        if isinstance(problem, CheckpointWriteError):
            report_failure(step, problem)
        return problem


def agree(draft: SaveDraft | None, problem: Exception | None, *, call: str = "save") -> SaveDraft:
    """Hear from all ranks whether this save can begin; either all go on or all raise.

    Raises:
        CheckpointWriteError: Another rank cannot, or the ranks do not mean the same save.
        CheckpointError: Another rank does not save at all, but loads.
        Exception: This rank's own `problem`.
    """
    try:
        answers = gather_json(_answer(draft, problem), call=call)
        return _agreed(draft, problem, answers)
    except BaseException:
        if draft is not None:
            draft.abandon()
        raise


def _answer(draft: SaveDraft | None, problem: Exception | None) -> dict[str, Any]:
    if draft is None or problem is not None:
        return {"problem": told(problem) if problem else "unknown"}
    return {"step": draft.order.step, "save_id": draft.order.save_id, "fingerprint": draft.fingerprint}


def _agreed(draft: SaveDraft | None, problem: Exception | None, answers: list[dict[str, Any]]) -> SaveDraft:
    refusal = _refusal(answers)
    if problem is not None or refusal or draft is None:
        raise problem or CheckpointWriteError(refusal, meaning=UNCHANGED)
    return replace(draft, order=replace(draft.order, save_id=answers[0]["save_id"]))


def _refusal(answers: list[dict[str, Any]]) -> str:
    for rank, answer in enumerate(answers):
        if "problem" in answer:
            return f"Rank {rank} cannot save: {answer['problem']}"
    steps = [answer["step"] for answer in answers]
    if len(set(steps)) > 1:
        return f"The ranks save different steps ({', '.join(map(str, steps))}): each save needs all ranks at one step."
    if len({answer["fingerprint"] for answer in answers}) > 1:
        return (
            "The ranks hold different models or optimizers, as with pipeline parallelism or a sharded optimizer: "
            "a checkpoint holds one model, replicated (DDP) or sharded (FSDP2)."
        )
    return ""


def parse_step(step: Any) -> int:
    """The step as a number.

    Raises:
        ConfigError: It is none, or negative.
    """
    try:
        number = operator.index(step)
    except TypeError:
        raise ConfigError("step", step, "must be a whole number") from None
    if number < 0:
        raise ConfigError("step", step, "must not be negative")
    return number


def parse_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics as numbers; NaN and infinities are numbers here.

    Raises:
        ConfigError: One of them is neither a number nor a tensor of one element.
    """
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
