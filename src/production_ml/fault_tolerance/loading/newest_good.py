"""Which checkpoint to load: the newest that every rank has verified, found together, step by step backwards."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.fault_tolerance.agreement import gather_json, refused_on_all
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration
from production_ml.fault_tolerance.loading.answers import answer, found_damage, raise_problems
from production_ml.fault_tolerance.loading.copying_threads import copying_threads
from production_ml.fault_tolerance.loading.garbage_pause import garbage_pause
from production_ml.fault_tolerance.loading.reading import Verify, read_boxes
from production_ml.fault_tolerance.memory_copies.found import NOTHING_FOUND, CopiedStep, FoundCopies
from production_ml.fault_tolerance.memory_copies.visit import GoneError
from production_ml.fault_tolerance.saving.patience import Patience

_LOG: Final = logging.getLogger(__name__)
_SAVES_UNDER_WAY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint that this rank has read and found good."""

    manifest: Manifest
    restoration: Restoration
    tensors: dict[str, torch.Tensor]
    source: str = "disk"
    """Or `memory`, or `peer` where a rank has read it from another node's memory."""


@dataclass(frozen=True, slots=True)
class Search:
    """What all ranks found together."""

    newest_good: Verified | None
    damaged: dict[int, list[Damage]]
    """On disk, by step, newest first."""
    misnamed: list[Damage] = field(default_factory=list)
    """What was found under a name that it had not been given; it has its own again."""
    damaged_copies: dict[str, list[Damage]] = field(default_factory=dict)
    """In memory, by save."""


def search(
    directory: CheckpointPlace,
    plan: Callable[[Manifest], Restoration],
    *,
    rank: int,
    world_size: int,
    verify: Verify = "full",
    copies: FoundCopies = NOTHING_FOUND,
) -> Search:
    """Find the newest checkpoint that is good on all ranks, in memory or on disk. Every rank has to call this.

    Args:
        directory: Where the checkpoints are.
        plan: Finds out whether a checkpoint fits, and what this rank reads of it.
        rank: This rank.
        world_size: The number of ranks that load together.
        verify: What is compared with its hashes, see `read_boxes`.
        copies: What there is in memory; of the same step it is read before the disk.

    Raises:
        CheckpointMismatchError: The newest good one does not fit, on this rank or another.
        CheckpointError: The system refuses to read it.
    """
    # What is being written now was copied in memory before.
    misnamed = _begin(directory, rank=rank, waits=not copies.steps)
    damaged: dict[int, list[Damage]] = {}
    damaged_copies: dict[str, list[Damage]] = {}
    gone: set[int] = set()
    in_memory = deque(copies.steps)
    # Listed anew each time: a training that runs beside this process commits, replaces and prunes.
    while (steps := [step for step in _steps(directory, rank=rank) if step not in damaged]) or in_memory:
        if in_memory and in_memory[0].step >= max(steps, default=0):
            copied = in_memory.popleft()
            verified, found = _try_memory(copied, plan, rank=rank, world_size=world_size)
            if verified is not None:
                return Search(verified, damaged, misnamed, damaged_copies)
            if found:
                damaged_copies[copied.save_id] = found
            continue
        step = steps[-1]
        tried = _try(directory, step, plan, rank=rank, world_size=world_size, verify=verify)
        answers = gather_json({**answer(tried.problem), "is_gone": tried.is_gone}, call=f"load_latest of step {step}")
        if any(theirs["is_gone"] for theirs in answers):
            _check_shared(directory, step, gone, [theirs["is_gone"] for theirs in answers])
            gone.add(step)
        elif found := found_damage(answers):
            damaged[step] = found
        else:
            raise_problems(tried.problem, answers)
            return Search(tried.verified, damaged, misnamed, damaged_copies)
    return Search(None, damaged, misnamed, damaged_copies)


def _try_memory(
    copied: CopiedStep, plan: Callable[[Manifest], Restoration], *, rank: int, world_size: int
) -> tuple[Verified | None, list[Damage]]:
    """Read a copy on all ranks; neither a checkpoint nor damage where a keeper ended meanwhile."""
    tried = _try_copy(copied, plan, rank=rank, world_size=world_size)
    told = {**answer(tried.problem), "is_gone": tried.is_gone, "is_from_peer": copied.is_from_peer}
    answers = gather_json(told, call=f"load_latest of step {copied.step} in memory")
    damage = found_damage(answers)
    if damage or any(theirs["is_gone"] for theirs in answers):
        return None, damage
    raise_problems(tried.problem, answers)
    assert tried.verified is not None  # noqa: S101 - where there is no problem, there is this
    source = "peer" if any(theirs["is_from_peer"] for theirs in answers) else "memory"
    return replace(tried.verified, source=source), []


def apply_on_all(found: Verified) -> dict[str, Any]:
    """Give every object its state; where one refuses, on whichever rank, all ranks raise.

    Returns:
        The extras by name.

    Raises:
        CheckpointMismatchError: An object refuses its state, on this rank or another.
        CheckpointError: It went wrong otherwise on another rank.
        Exception: It went wrong on this rank.
    """
    extras: dict[str, Any] = {}
    problem: Exception | None = None
    try:
        with copying_threads():
            extras = found.restoration.apply(found.tensors)
    except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
        problem = error
    answers = gather_json(answer(problem), call=f"load_latest of step {found.manifest.step}, verified")
    raise_problems(problem, answers)
    return extras


def _begin(directory: CheckpointPlace, *, rank: int, waits: bool) -> list[Damage]:
    """Rank 0 waits for what is still being written, and looks for names that a bad disk has changed.

    Such checkpoints get their names back with the next listing, and nothing of them is lost; but the disk is bad.
    """
    misnamed: list[Damage] = []
    with refused_on_all(call="load_latest, waiting for saves"):
        if rank == 0:
            # The listing, which follows, tells all ranks of a directory that cannot be read.
            with contextlib.suppress(OSError):
                if waits:
                    _await_saves_under_way(directory)
                misnamed = [Damage.of_name(found) for found in directory.misnamed()]
    told = gather_json([found.to_dict() for found in misnamed], call="load_latest, beginning")
    return [Damage(**found) for found in told[0]]


def _await_saves_under_way(directory: CheckpointPlace) -> None:
    """Let the writers of workers that died finish: what they write is newer than all that is committed.

    They do not wait long for ranks that died too. Who trains in the same directory at the same time does not hold this
    up for ever either: only saves that are under way now are waited for.
    """
    under_way = directory.saves_under_way()
    patience = Patience(_SAVES_UNDER_WAY_SECONDS)
    while any(save.is_held_here() for save in under_way):
        if not patience.pause():
            _LOG.warning("%s: another process has been saving there for a minute; it is not waited for", directory.url)
            return


def _steps(directory: CheckpointPlace, *, rank: int) -> list[int]:
    """Rank 0's listing counts: the others may see an older one, and all have to try the same steps."""
    steps: list[int] = []
    problem = ""
    try:
        if rank == 0:
            directory.put_back()
            steps = directory.steps()
    except OSError as error:
        problem = f"{directory.url}: cannot be listed ({error.strerror})."
    except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
        problem = f"{directory.url}: cannot be listed ({error!r})."
    first = gather_json({"steps": steps, "problem": problem}, call="load_latest")[0]
    if first["problem"]:
        cure = "Give this user the right to read the checkpoint directory, then start again."
        raise CheckpointError(first["problem"], meaning="Nothing was loaded.", cure=cure)
    return list(first["steps"])


@dataclass(frozen=True, slots=True)
class _Tried:
    verified: Verified | None = None
    problem: Exception | None = None
    is_gone: bool = False
    """It was removed or replaced while it was read, which is no damage."""


def _try(
    directory: CheckpointPlace,
    step: int,
    plan: Callable[[Manifest], Restoration],
    *,
    rank: int,
    world_size: int,
    verify: Verify,
) -> _Tried:
    """Read a checkpoint, and keep what is wrong with it: the other ranks wait to hear of it before this one raises."""
    identity = directory.identity(step)
    try:
        with directory.reading(step), garbage_pause():
            manifest = directory.manifest(step)
            restoration = plan(manifest)

            def open_source(file: str) -> ByteSource:
                return directory.source(step, file)

            wanted = restoration.boxes
            tensors = read_boxes(open_source, manifest, wanted, rank=rank, world_size=world_size, verify=verify)
        return _Tried(Verified(manifest, restoration, tensors))
    except DamagedCheckpointError as problem:
        return _Tried(problem=problem, is_gone=identity is None or directory.identity(step) != identity)
    except Exception as problem:  # noqa: BLE001 - as in apply_on_all
        return _Tried(problem=problem)


def _try_copy(copied: CopiedStep, plan: Callable[[Manifest], Restoration], *, rank: int, world_size: int) -> _Tried:
    """The same for a copy in memory."""
    try:
        with contextlib.closing(copied), garbage_pause():
            manifest = copied.manifest()
            restoration = plan(manifest)
            boxes = restoration.boxes
            tensors = read_boxes(copied.open_source, manifest, boxes, rank=rank, world_size=world_size)
        return _Tried(Verified(manifest, restoration, tensors))
    except GoneError:
        return _Tried(is_gone=True)
    except Exception as problem:  # noqa: BLE001 - as in apply_on_all
        return _Tried(problem=problem)


def _check_shared(directory: CheckpointPlace, step: int, gone: set[int], is_gone: list[bool]) -> None:
    """What one rank misses while rank 0 goes on listing it is not damaged: another node does not see it.

    To quarantine that would take good checkpoints away.
    """
    if step in gone:
        blind = is_gone.index(True)
        raise CheckpointError(
            f"{directory.committed(step)}: rank 0 lists this checkpoint, but rank {blind} does not see it.",
            meaning="Nothing was loaded.",
            cure="The checkpoint_dir must be on a file system that all ranks share.",
        )
