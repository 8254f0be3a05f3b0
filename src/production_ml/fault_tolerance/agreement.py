"""How ranks agree: small JSON values exchanged over the process group's store, never a pickle, never a tensor."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch.distributed.distributed_c10d import PrefixStore, ProcessGroup, Store, _get_default_group, _get_default_store

from production_ml.core.errors import CheckpointError, ProductionMLError
from production_ml.fault_tolerance.farewell import end_well
from production_ml.training.ranks import rank_and_world_size

_PREFIX: Final = "production_ml/agreement"


def gather_json(value: Any, *, call: str) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank. All ranks have to call it, in the same order.

    It goes over the store that the ranks met through. A collective would need a GPU under NCCL, and under gloo its
    thread lets go of the tensors some time after the call has returned, for which it needs the interpreter: a script
    that ends just then is aborted (torch 2.13, `AsyncAllgatherWork`), which a launcher takes for a failure.

    Args:
        value: What this rank tells, in JSON.
        call: What it is told for: one rank's answer to one question is never taken for its answer to another.

    Raises:
        CheckpointError: The ranks are in different calls; all of them raise.
        RuntimeError: A rank did not answer within the process group's time limit.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    answers = _board().exchange({"call": call, "value": value}, rank, world_size)
    _check_calls([answer["call"] for answer in answers])
    return [answer["value"] for answer in answers]


def told(problem: Exception) -> str:
    """A rank's problem in words for the others; a plain KeyError is told with its type, as "'x'" says nothing."""
    return str(problem) if isinstance(problem, ProductionMLError) else repr(problem)


@contextlib.contextmanager
def refused_on_all(*, call: str) -> Iterator[None]:
    """Within it each rank looks at what it was given; what one of them raises is raised on all. All have to call it.

    Raises:
        CheckpointError: Another rank raised, or the ranks are in different calls.
        Exception: What this rank raised.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as refusal:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
        problem = refusal
    answers = gather_json(None if problem is None else told(problem), call=call)
    if problem is not None:
        raise problem
    for rank, theirs in enumerate(answers):
        if theirs is not None:
            raise CheckpointError(f"rank {rank}: {theirs}")


def _check_calls(calls: Sequence[str]) -> None:
    first_ranks = {call: calls.index(call) for call in calls}
    if len(first_ranks) > 1:
        where = ", ".join(f"rank {rank} in {call}" for call, rank in first_ranks.items())
        raise CheckpointError(
            f"The ranks are in different calls: {where}.",
            meaning="None of these calls did anything.",
            cure="Every rank has to make the same calls of save and load_latest, in the same order.",
        )


class _Board:
    """The notice board of one process group: each round has one notice of each rank, and one of rank 0 with all."""

    def __init__(self, store: Store, generation: int) -> None:
        # A connection of its own, where torch has that (2.8): waiting on the shared one would hold up its other users.
        own = store.clone() if hasattr(store, "clone") else store
        # A group that is made anew may meet in the same store, where the last notice of the one before still hangs.
        self._store = PrefixStore(f"{_PREFIX}/{generation}", own)
        self._round = 0

    def exchange(self, value: Any, rank: int, world_size: int) -> list[Any]:
        """One round."""
        self._round += 1
        mine = json.dumps(value)
        if rank != 0:
            self._store.set(f"{self._round}/{rank}", mine)
            return list(json.loads(self._store.get(f"{self._round}/all")))
        notices = [f"{self._round}/{other}" for other in range(1, world_size)]
        answers = [json.loads(mine), *(json.loads(self._store.get(notice)) for notice in notices)]
        self._store.set(f"{self._round}/all", json.dumps(answers))
        # Nobody reads these any more: all ranks have had the round before, for they have answered in this one.
        for notice in [*notices, f"{self._round - 1}/all"]:
            self._store.delete_key(notice)
        return answers


_boards: WeakKeyDictionary[ProcessGroup, _Board] = WeakKeyDictionary()
_generations = itertools.count()
"""All ranks make their groups in the same order, so they count alike."""


def _board() -> _Board:
    """The default group's; a group that was made anew has a new one."""
    group = _get_default_group()
    board = _boards.get(group)
    if board is None:
        generation = next(_generations)
        if generation == 0:
            end_well()
        board = _boards[group] = _Board(_get_default_store(), generation)
    return board
