"""Before a save is under way: what this rank would write, and the agreement of all ranks that it will be written."""

from __future__ import annotations

import contextlib
import operator
import secrets
from collections.abc import Mapping
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
from production_ml.fault_tolerance.saving.shard_plan import fingerprint, plan_shard
from production_ml.fault_tolerance.saving.staging import StagingMemory


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


def draft_save(
    directory: CheckpointDirectory, memory: StagingMemory, inputs: SaveInputs, *, rank: int, world_size: int
) -> SaveDraft:
    """Copy this rank's state, and on rank 0 make the directory that all ranks will write to.

    Raises:
        CheckpointWriteError: Something cannot be saved, or the directory cannot be made.
        ConfigError: A step or metric is not a number, or an extra has a name that is taken.
    """
    step, metrics = parse_step(inputs.step), parse_metrics(inputs.metrics)
    try:
        captured = capture(inputs.model, inputs.optimizer, inputs.extra)
        plan = plan_shard(captured.tensors, rank=rank)
        save_id = secrets.token_hex(8)
        lock = directory.begin(step, save_id) if rank == 0 else None
    except OSError as problem:
        error = write_error(f"The checkpoint of step {step} could not be written to {directory.path}", problem)
        report_failure(step, error)
        raise error from problem
    except CheckpointWriteError as error:
        report_failure(step, error)
        raise
    order = SaveOrder(
        directory=directory,
        step=step,
        save_id=save_id,
        rank=rank,
        world_size=world_size,
        metrics=metrics,
        values=captured.values if rank == 0 else None,
        holdings=plan.holdings,
        staged={},
    )
    draft = SaveDraft(order, lock, fingerprint(captured.tensors) if world_size > 1 else "")
    try:
        return replace(draft, order=replace(order, staged=memory.stage(plan.data)))
    except BaseException:
        draft.abandon()
        raise


def agree(draft: SaveDraft | None, problem: Exception | None) -> SaveOrder:
    """Hear from all ranks whether this save can begin; either all go on or all raise.

    Raises:
        CheckpointWriteError: Another rank cannot, or the ranks do not mean the same save.
        CheckpointError: Another rank does not save at all, but loads.
        Exception: This rank's own `problem`.
    """
    try:
        answers = gather_json(_answer(draft, problem), call="save")
        return _agreed(draft, problem, answers)
    except BaseException:
        if draft is not None:
            draft.abandon()
        raise


def _answer(draft: SaveDraft | None, problem: Exception | None) -> dict[str, Any]:
    if draft is None or problem is not None:
        return {"problem": told(problem) if problem else "unknown"}
    return {"step": draft.order.step, "save_id": draft.order.save_id, "fingerprint": draft.fingerprint}


def _agreed(draft: SaveDraft | None, problem: Exception | None, answers: list[dict[str, Any]]) -> SaveOrder:
    refusal = _refusal(answers)
    if problem is not None or refusal or draft is None:
        raise problem or CheckpointWriteError(refusal, meaning=UNCHANGED)
    return replace(draft.order, save_id=answers[0]["save_id"])


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
