"""Which checkpoint to load: the newest that every rank has verified, found together, step by step backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from production_ml.core.errors import (
    CheckpointError,
    CheckpointMismatchError,
    DamagedCheckpointError,
    ProductionMLError,
)
from production_ml.fault_tolerance.agreement import gather_json
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration
from production_ml.fault_tolerance.loading.reading import read_boxes


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint that this rank has read and found good."""

    manifest: Manifest
    restoration: Restoration
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Search:
    """What all ranks found together."""

    newest_good: Verified | None
    damaged: dict[int, list[Damage]]
    """By step, newest first."""


def search(
    directory: CheckpointDirectory, plan: Callable[[Manifest], Restoration], *, rank: int, world_size: int
) -> Search:
    """Find the newest checkpoint that is good on all ranks. Every rank has to call this.

    Args:
        directory: Where the checkpoints are.
        plan: Finds out whether a checkpoint fits, and what this rank reads of it.
        rank: This rank.
        world_size: The number of ranks that load together.

    Raises:
        CheckpointMismatchError: The newest good one does not fit, on this rank or another.
        CheckpointError: The system refuses to read it.
    """
    damaged: dict[int, list[Damage]] = {}
    # Rank 0's listing counts: the others may see an older one, and all have to try the same steps.
    for step in reversed(_steps(directory, rank=rank)):
        verified, problem = _try(directory, step, plan, rank=rank, world_size=world_size)
        answers = gather_json(_answer(problem))
        found = _found_damage(answers)
        if found:
            damaged[step] = found
        elif problem is not None:
            raise problem
        else:
            _raise_for_others(answers)
            return Search(verified, damaged)
    return Search(None, damaged)


def _steps(directory: CheckpointDirectory, *, rank: int) -> list[int]:
    steps: list[int] = []
    problem = ""
    try:
        steps = directory.steps() if rank == 0 else []
    except OSError as error:
        problem = f"{directory.path}: cannot be listed ({error.strerror})."
    first = gather_json({"steps": steps, "problem": problem})[0]
    if first["problem"]:
        cure = "Give this user the right to read the checkpoint directory, then start again."
        raise CheckpointError(first["problem"], meaning="Nothing was loaded.", cure=cure)
    return list(first["steps"])


def _try(
    directory: CheckpointDirectory, step: int, plan: Callable[[Manifest], Restoration], *, rank: int, world_size: int
) -> tuple[Verified | None, ProductionMLError | None]:
    """Read a checkpoint, and keep what is wrong with it: the other ranks wait to hear of it before this one raises."""
    path = directory.committed(step)
    try:
        if rank != 0 and not path.is_dir():
            # Not damage: quarantining what one node cannot see would take good checkpoints away.
            raise CheckpointError(
                f"{path}: rank 0 sees this checkpoint, but rank {rank} does not.",
                meaning="Nothing was loaded.",
                cure="The checkpoint_dir must be on a file system that all ranks share.",
            )
        manifest = directory.manifest(step)
        restoration = plan(manifest)
        return Verified(
            manifest,
            restoration,
            read_boxes(path, manifest, restoration.boxes, rank=rank, world_size=world_size),
        ), None
    except ProductionMLError as problem:
        return None, problem


def _answer(problem: ProductionMLError | None) -> dict[str, Any]:
    if problem is None:
        return {}
    if isinstance(problem, DamagedCheckpointError):
        return {"damage": Damage.of(problem).to_dict()}
    return {"problem": str(problem), "is_mismatch": isinstance(problem, CheckpointMismatchError)}


def _found_damage(answers: Sequence[dict[str, Any]]) -> list[Damage]:
    """Each damage once, though ranks that read the same bytes all report it."""
    return list(dict.fromkeys(Damage(**answer["damage"]) for answer in answers if "damage" in answer))


def _raise_for_others(answers: Sequence[dict[str, Any]]) -> None:
    for rank, answer in enumerate(answers):
        if "problem" in answer:
            kind = CheckpointMismatchError if answer["is_mismatch"] else CheckpointError
            raise kind(f"rank {rank}: {answer['problem']}")
