"""Saving, from the live objects to the commit: one save under way at a time, everything else reused."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.memory_copies.keeping import keeping
from production_ml.fault_tolerance.memory_copies.ring import ImageRing
from production_ml.fault_tolerance.saving.background import Background
from production_ml.fault_tolerance.saving.commit import GivenUpError, give_up
from production_ml.fault_tolerance.saving.disk_pause import DiskPause, Verdict
from production_ml.fault_tolerance.saving.draft import Drafting, SaveDraft, SaveInputs, SavingIsPausedError
from production_ml.fault_tolerance.saving.free_space import full_disk_error
from production_ml.fault_tolerance.saving.mutation_gate import MutationGate, guarded_tensors, hooked
from production_ml.fault_tolerance.saving.save_agreement import Standing, agree, raise_failure
from production_ml.fault_tolerance.saving.save_in_flight import Committed, SaveInFlight
from production_ml.fault_tolerance.saving.shard_plan import ShardPlanner
from production_ml.fault_tolerance.saving.staging import TornSaveError
from production_ml.fault_tolerance.saving.writer.client import Writer
from production_ml.training.ranks import rank_and_world_size

_LOG: Final = logging.getLogger(__name__)
OnCommit = Callable[[Committed, float, float], None]
"""Gets what was committed, and for how many seconds it was under way and training was held up."""


class Saver:
    """Makes checkpoints of a training in a directory.

    Args:
        directory: Where to.
        asynchronous: Whether training goes on while they are written.
        on_commit: Called on rank 0 after each commit, and after each save that is kept in memory alone.
        disk_pause: What to do on a full disk; None where there is no disk.
        memory_copies: How many of the newest steps are kept in memory too.
        defer_copies: Whether parameters may be copied until the next `optimizer.step()`; see `CheckpointManager`.
    """

    _drafting: Drafting | None
    _in_flight: SaveInFlight | None

    def __init__(
        self,
        directory: CheckpointPlace,
        *,
        asynchronous: bool,
        on_commit: OnCommit,
        disk_pause: DiskPause | None = None,
        memory_copies: int = 0,
        defer_copies: bool = True,
    ) -> None:
        self._directory = directory
        self._memory_copies = memory_copies
        self._asynchronous = asynchronous
        self._on_commit = on_commit
        self._disk_pause = disk_pause
        self._committed_bytes = 0
        self._leftovers_are_cleared = False
        self._may_defer = asynchronous and defer_copies
        self._expecting: RemovableHandle | None = None
        self._begin_anew()

    def save(
        self, inputs: SaveInputs, *, on_disk: bool = True, refusal: ConfigError | None = None
    ) -> Mapping[str, float] | None:
        """Save the state as it is now; see `CheckpointManager.save` and `save_to_memory`.

        Args:
            inputs: What to save.
            on_disk: Whether it is written, or kept in memory alone.
            refusal: Why this rank cannot; it is raised when the other ranks have heard of it.

        Returns:
            The metrics as numbers; None where the save was left out for want of room.
        """
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        self._leave_parents_things()
        # It uses the writer from a thread of its own.
        self._await_prepared()
        before = self._ended()
        call = "save" if on_disk else "save_to_memory"
        self._ring.settle(self._writer, call=call)
        agreed = agree(self._standing(inputs, before, on_disk=on_disk, refusal=refusal), call=call)
        if agreed is None:
            return None
        try:
            self._ring.hold(agreed.order.save_id)
            self._gate.close_for(agreed.transfer)
            self._begin(agreed, started_seconds)
        except BaseException as problem:
            # Interrupted before the save was under way: nobody else would let go of the claim, or tell the other ranks.
            if self._in_flight is None or self._in_flight.call_off():
                self._in_flight = None
                self._gate.open()
                if on_disk:
                    give_up(agreed.order, problem)
                agreed.abandon()
            raise
        if not self._asynchronous:
            self._tell_outcome()
        return agreed.order.metrics

    @property
    def step_under_way(self) -> int | None:
        """The step of the save that may still be under way, as where the wait for it was interrupted; None of none."""
        return None if self._in_flight is None else self._in_flight.step

    def expect_training(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Get the memory ready once `optimizer` has stepped for the first time, for then all of its state is there.

        So the first save is no slower than the others, and who never trains pays nothing.
        """
        # The optimizer may outlive a manager that is dropped without close(), and must not keep its memory.
        saver = weakref.ref(self)

        def prepare(*_: Any) -> None:
            handle.remove()
            if (waiting := saver()) is not None:
                waiting._prepare(SaveInputs(model, optimizer, 0, {}, {}))

        self._stop_expecting()
        if (stepping := hooked(optimizer)) is not None:
            handle = self._expecting = stepping.register_step_post_hook(prepare)

    def _stop_expecting(self) -> None:
        if self._expecting is not None:
            self._expecting.remove()
            self._expecting = None

    def forget(self, save_ids: Collection[str]) -> None:
        """These copies in memory are not to be loaded, and not to be spared."""
        self._writer.kept.difference_update(save_ids)

    def join(self) -> None:
        """Return when no save is under way; how it ended is told by the next call that may raise."""
        self._leave_parents_things()
        if self._in_flight is not None:
            self._in_flight.join()

    def wait(self) -> None:
        """Return when the save under way is committed, or was left out for want of room.

        Raises:
            CheckpointWriteError: It failed.
        """
        self._leave_parents_things()
        ended = self._ended()
        if ended is None or ended.error is None or ended.is_excused:
            return
        if isinstance(ended.error, GivenUpError):
            # Rank 0 knows why, and raises it where it is an error; a full disk on its side is none.
            _LOG.warning("%s", ended.error)
            return
        raise ended.error

    def _tell_outcome(self) -> None:
        """Go on with all ranks, or raise on all of them: those that go on alone would wait for the others."""
        ended = self._ended()
        error = None if ended is None or ended.is_excused else ended.error
        given_up = error if isinstance(error, GivenUpError) else None
        raise_failure(None if given_up else error)
        if given_up is not None:
            _LOG.warning("%s", given_up)

    def leave_soon(self) -> None:
        """The script has failed: do not wait long for ranks that may be gone."""
        self._leave_parents_things()
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
            # Where the wait was interrupted, the save still uses all this; who calls again gives it back.
            if self._in_flight is None:
                self._await_prepared()
                self._stop_expecting()
                self._gate.remove()
                self._writer.close()
                self._ring.close()
                self._begin_anew()

    def _leave_parents_things(self) -> None:
        """In a fork the image is shared memory, and the writer and the save under way are the parent's."""
        if self._pid != os.getpid():
            self._gate.remove()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._ring = ImageRing(self._memory_copies)
        self._staging = self._ring.next()
        self._gate = MutationGate()
        self._writer = Writer(keeping(self._directory, self._memory_copies))
        self._drafting = None
        self._in_flight = None
        self._preparing: Background | None = None
        self._pid = os.getpid()

    def _ended(self) -> SaveInFlight | None:
        """The save that was under way, once it has ended."""
        if self._in_flight is None:
            return None
        self._in_flight.join()
        ended, self._in_flight = self._in_flight, None
        if isinstance(ended.error, TornSaveError):
            # It is in the log, and cannot happen again: nothing is gained by ending a training over it.
            self._may_defer = False
        return ended

    def _standing(
        self, inputs: SaveInputs, before: SaveInFlight | None, *, on_disk: bool, refusal: ConfigError | None
    ) -> Standing:
        error = None if before is None else before.error
        of_before = Standing(
            given_up=error if isinstance(error, GivenUpError) else None,
            # What memory did not take is in the log, and is no reason to lose a checkpoint on disk as well.
            is_excused=before is not None
            and (before.is_excused or (on_disk and not before.on_disk and error is not None)),
        )
        if error is not None and not of_before.is_excused and of_before.given_up is None:
            return Standing(problem=error)
        if refusal is not None:
            return replace(of_before, problem=refusal)
        while True:
            try:
                return replace(of_before, draft=self._draft(inputs, on_disk=on_disk))
            except SavingIsPausedError:
                return replace(of_before, is_paused=True)
            except Exception as problem:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
                verdict = self._verdict_on(inputs, problem) if on_disk else Verdict.NOT_FULL
                if verdict is Verdict.PAUSED:
                    return replace(of_before, is_paused=True)
                if verdict is Verdict.NOT_FULL:
                    return replace(of_before, problem=problem)
            # Something was removed to make room, which cannot go on for ever: this save is not to be the one left out.

    def _verdict_on(self, inputs: SaveInputs, error: Exception) -> Verdict:
        """Whether the disk was too full even for the directory of the save."""
        pause = self._disk_pause
        if pause is None or rank_and_world_size()[0] != 0 or full_disk_error(error) is None:
            return Verdict.NOT_FULL
        return pause.failed(error, step=int(inputs.step), needed_bytes=self._committed_bytes)

    def _admits(self, step: int, size_bytes: int) -> bool:
        # This rank knows its own share; the checkpoint before it tells what all shares come to.
        return self._disk_pause is None or self._disk_pause.admits(step, max(size_bytes, self._committed_bytes))

    def _drafting_now(self) -> Drafting:
        rank, world_size = rank_and_world_size()
        if self._drafting is None or (self._drafting.rank, self._drafting.world_size) != (rank, world_size):
            self._drafting = Drafting(
                directory=self._directory,
                planner=ShardPlanner(rank=rank),
                staging=self._staging,
                rank=rank,
                world_size=world_size,
                admits=self._admits if rank == 0 else None,
            )
        return self._drafting

    def _prepare(self, inputs: SaveInputs) -> None:
        """Lay out what a save of these would write, touch its memory and start the writer, all in the background."""
        if self._in_flight is not None or self._preparing is not None or self._pid != os.getpid():
            return
        drafting = self._drafting_now()

        def work() -> None:
            try:
                drafting.prepare(plan)
                self._writer.prepare(self._staging.image)
            except (OSError, CheckpointWriteError):
                _LOG.debug("memory for checkpoints could not be got ready; the first save tries again", exc_info=True)

        try:
            plan = drafting.plan(inputs)
        except Exception:  # noqa: BLE001 - it is the user's optimizer.step() that calls: the first save says why
            _LOG.debug("a checkpoint cannot be planned yet; the first save tries again", exc_info=True)
            return
        self._preparing = Background(work, name="checkpoint-prepare", daemon=True)
        self._preparing.start()

    def _await_prepared(self) -> None:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None

    def _draft(self, inputs: SaveInputs, *, on_disk: bool) -> SaveDraft:
        drafting = self._drafting_now()
        self._staging = self._ring.next()
        self._ring.announce(self._writer)
        drafting = replace(drafting, staging=self._staging, on_disk=on_disk, is_sent=self._ring.is_sent)
        if drafting.rank == 0 and not self._leftovers_are_cleared:
            # Only before a save, as a reader has no say in it, and by rank 0 alone, for two would trip over each other.
            self._directory.remove_leftovers()
            self._leftovers_are_cleared = True
        found = map(hooked, (inputs.optimizer, *inputs.extra.values()))
        optimizers = [optimizer for optimizer in found if optimizer is not None]
        if not self._may_defer:
            return drafting.draft(inputs, frozenset())
        self._gate.guard()
        return drafting.draft(inputs, guarded_tensors(optimizers))

    def _begin(self, draft: SaveDraft, started_seconds: float) -> None:
        stall_seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds

        def on_commit(committed: Committed) -> None:
            if committed.on_disk:
                self._committed_bytes = committed.size_bytes
            duration = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
            stall = stall_seconds + self._gate.stall_seconds if self._asynchronous else duration
            if self._disk_pause is not None and committed.on_disk:
                self._disk_pause.succeeded(committed.step)
            self._on_commit(committed, duration, stall)

        pause = self._disk_pause if draft.order.rank == 0 else None
        self._in_flight = SaveInFlight(draft, self._staging.image, self._writer, on_commit, pause)
        if self._asynchronous:
            self._in_flight.start()
        else:
            self._in_flight.run()
