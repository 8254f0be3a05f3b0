"""Saving, from the live objects to the commit: one save under way at a time, everything else reused."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.fault_tolerance.agreement import rank_and_world_size
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.keeping import keeping
from production_ml.fault_tolerance.memory_copies.ring import ImageRing
from production_ml.fault_tolerance.saving.draft import Drafting, SaveDraft, SaveInputs, agree
from production_ml.fault_tolerance.saving.mutation_gate import MutationGate, guarded_tensors
from production_ml.fault_tolerance.saving.save_in_flight import Committed, SaveInFlight
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import TornSaveError
from production_ml.fault_tolerance.saving.writer.client import Writer

OnCommit = Callable[[Committed, float, float], None]
"""Gets what was committed, and for how many seconds it was under way and training was held up."""


class Saver:
    """Makes checkpoints of a training in a directory.

    Args:
        directory: Where to.
        asynchronous: Whether training goes on while they are written.
        on_commit: Called on rank 0 after each commit, and after each save that is kept in memory alone.
        memory_copies: How many of the newest steps are kept in memory too.
    """

    _drafting: Drafting | None
    _in_flight: SaveInFlight | None

    def __init__(
        self, directory: CheckpointDirectory, *, asynchronous: bool, on_commit: OnCommit, memory_copies: int = 0
    ) -> None:
        self._directory = directory
        self._memory_copies = memory_copies
        self._asynchronous = asynchronous
        self._on_commit = on_commit
        self._leftovers_are_cleared = False
        self._may_defer = asynchronous
        self._begin_anew()

    def save(self, inputs: SaveInputs, *, on_disk: bool = True) -> Mapping[str, float]:
        """Save the state as it is now; see `CheckpointManager.save` and `save_to_memory`.

        Returns:
            The metrics as numbers.
        """
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        draft: SaveDraft | None = None
        problem: Exception | None = None
        try:
            if self._pid != os.getpid():
                # Forked: the image is shared memory, and the writer and the save under way are the parent's.
                self._begin_anew()
            self.wait()
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
            problem = error
        call = "save" if on_disk else "save_to_memory"
        self._ring.settle(self._writer, call=call)
        try:
            if problem is None:
                draft = self._draft(inputs, on_disk=on_disk)
        except Exception as error:  # noqa: BLE001 - as above
            problem = error
        agreed = agree(draft, problem, call=call)
        self._ring.hold(agreed.order.save_id)
        self._gate.close_for(agreed.transfer)
        self._begin(agreed, started_seconds)
        return agreed.order.metrics

    def forget(self, save_ids: Collection[str]) -> None:
        """These copies in memory are not to be loaded, and not to be spared."""
        self._writer.kept.difference_update(save_ids)

    def join(self) -> None:
        """Return when no save is under way; how it ended is told by the next call that may raise."""
        if self._in_flight is not None:
            self._in_flight.join()

    def wait(self) -> None:
        """Return when the save under way is committed.

        Raises:
            CheckpointWriteError: It failed.
        """
        if self._in_flight is None:
            return
        self._in_flight.join()
        ended, self._in_flight = self._in_flight, None
        if isinstance(ended.error, TornSaveError):
            # It is in the log, and cannot happen again: nothing is gained by ending a training over it.
            self._may_defer = False
        elif ended.error is not None:
            raise ended.error

    def leave_soon(self) -> None:
        """The script has failed: do not wait long for ranks that may be gone."""
        if self._in_flight is not None:
            self._in_flight.leave_soon()

    def close(self) -> None:
        """Wait for the save under way, and give everything back.

        Raises:
            CheckpointWriteError: It failed.
        """
        try:
            self.wait()
        finally:
            self._gate.remove()
            self._writer.close()
            self._ring.close()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._ring = ImageRing(self._memory_copies)
        self._staging = self._ring.next()
        self._gate = MutationGate()
        self._writer = Writer(keeping(self._directory, self._memory_copies))
        self._drafting = None
        self._in_flight = None
        self._pid = os.getpid()

    def _draft(self, inputs: SaveInputs, *, on_disk: bool) -> SaveDraft:
        rank, world_size = rank_and_world_size()
        if self._drafting is None or (self._drafting.rank, self._drafting.world_size) != (rank, world_size):
            self._drafting = Drafting(
                directory=self._directory,
                planner=ShardPlanner(rank=rank),
                staging=self._staging,
                rank=rank,
                world_size=world_size,
            )
        self._staging = self._ring.next()
        self._ring.announce(self._writer)
        drafting = replace(self._drafting, staging=self._staging, on_disk=on_disk, is_sent=self._ring.is_sent)
        if rank == 0 and not self._leftovers_are_cleared:
            # Only before a save, as a reader has no say in it, and by rank 0 alone, for two would trip over each other.
            self._directory.remove_leftovers()
            self._leftovers_are_cleared = True
        optimizers = [thing for thing in (inputs.optimizer, *inputs.extra.values()) if _has_hooks(thing)]
        if not self._may_defer:
            return drafting.draft(inputs, frozenset())
        self._gate.guard(optimizers)
        return drafting.draft(inputs, guarded_tensors(optimizers))

    def _begin(self, draft: SaveDraft, started_seconds: float) -> None:
        stall_seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds

        def on_commit(committed: Committed) -> None:
            duration = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
            stall = stall_seconds + self._gate.stall_seconds if self._asynchronous else duration
            self._on_commit(committed, duration, stall)

        self._in_flight = SaveInFlight(draft, self._staging.image, self._writer, on_commit)
        if self._asynchronous:
            self._in_flight.start()
        else:
            self._in_flight.run()
            self.wait()


def _has_hooks(thing: Any) -> bool:
    return isinstance(thing, Optimizer)
