"""A save that is under way beside the training: one thread, one outcome, which is never lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from production_ml.core.errors import CheckpointWriteError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.base import Claim
from production_ml.fault_tolerance.saving.background import Background
from production_ml.fault_tolerance.saving.commit import give_up
from production_ml.fault_tolerance.saving.disk_pause import DiskPause, Verdict
from production_ml.fault_tolerance.saving.free_space import full_disk_error
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import UNCHANGED, write_error
from production_ml.fault_tolerance.saving.patience import FAREWELL_SECONDS
from production_ml.fault_tolerance.saving.writer.client import NoKeeperError, Writer

if TYPE_CHECKING:
    from production_ml.fault_tolerance.saving.draft import SaveDraft

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that this process has made, as rank 0 knows it."""

    step: int
    size_bytes: int
    on_disk: bool = True
    """False where it is kept in memory alone."""


class SaveInFlight:
    """The background work of one save.

    Args:
        draft: What all ranks have agreed to.
        image: Where it is copied to.
        writer: Writes it.
        on_commit: Called on rank 0 after the commit, in the same thread.
        disk_pause: Rank 0's, where the checkpoints are on a disk that may be full.
    """

    def __init__(
        self,
        draft: SaveDraft,
        image: ShardImage,
        writer: Writer,
        on_commit: Callable[[Committed], None],
        disk_pause: DiskPause | None = None,
    ) -> None:
        self._draft = draft
        self._image = image
        self._writer = writer
        self._on_commit = on_commit
        self._disk_pause = disk_pause
        # Not a daemon: a script that ends without `close()` still gets its last checkpoint.
        self._work = Background(self._run, name=f"checkpoint-step-{draft.order.step}")
        self.error: CheckpointWriteError | None = None
        """Why there is no checkpoint; None while it is under way, and after a commit."""

    def start(self) -> None:
        """Work in the background. All ranks have agreed to this save, and none can step back any more."""
        self._work.start()

    def run(self) -> None:
        """Work, and keep what came of it."""
        self._work.run()

    def call_off(self) -> bool:
        """Whether the work had not begun; it never will then."""
        return self._work.call_off()

    def _run(self) -> None:
        order = self._draft.order
        try:
            self._copy()
            size_bytes = self._write()
        except CheckpointWriteError as error:
            self.error = error
        except Exception as problem:  # noqa: BLE001 - a thread has nobody to raise to: the next save() raises it
            self.error = CheckpointWriteError(
                f"The checkpoint of step {order.step} failed: {problem!r}", meaning=UNCHANGED
            )
            self.error.__cause__ = problem
        if isinstance(self.error, NoKeeperError):
            return  # the log tells it once
        if self.error is not None:
            report_failure(order.step, self.error)
        elif order.rank == 0:
            self._follow_up(Committed(order.step, size_bytes, order.on_disk))

    @property
    def step(self) -> int:
        """What is saved."""
        return self._draft.order.step

    @property
    def on_disk(self) -> bool:
        """False where it is for memory alone."""
        return self._draft.order.on_disk

    @property
    def is_excused(self) -> bool:
        """Whether it failed in a way that is no error to raise: for want of room, or by what cannot happen again."""
        return self.error is not None and (self.error.is_healed or full_disk_error(self.error) is not None)

    def _copy(self) -> None:
        try:
            self._draft.transfer.run()
        except BaseException as problem:
            if self._draft.order.on_disk:
                give_up(self._draft.order, problem)
            if self._draft.lock is not None:
                self._draft.lock.release()
            raise

    def _write(self) -> int:
        order, needed_bytes = self._draft.order, self._draft.order.contents.layout.size_bytes
        is_first = True
        while True:
            try:
                return self._write_once(self._draft.lock if is_first else self._claim_anew())
            except CheckpointWriteError as error:
                pause = self._disk_pause if order.on_disk else None
                verdict = pause and pause.failed(error, step=order.step, needed_bytes=needed_bytes)
                # Other ranks have heard that it failed; alone, the image is still here, and is written again.
                if verdict is not Verdict.RETRY or order.world_size > 1:
                    raise
            is_first = False

    def _claim_anew(self) -> Claim:
        order = self._draft.order
        try:
            return order.directory.begin(order.step, order.save_id)
        except OSError as problem:
            # The room that was made may be gone again: a full disk is one wherever it is met.
            what = f"The checkpoint of step {order.step} could not be written to {order.directory.url}"
            raise write_error(what, problem) from problem

    def _write_once(self, lock: Claim | None) -> int:
        try:
            return self._writer.write(self._draft.order, self._image, lock)
        finally:
            if lock is not None:
                lock.release()

    def _follow_up(self, committed: Committed) -> None:
        try:
            self._on_commit(committed)
        except Exception:  # noqa: BLE001 - the checkpoint is there: to call it failed would be wrong, whatever fails now
            step = committed.step
            _LOG.exception("Step %d is committed, but what follows a commit (such as pruning) failed", step)

    def join(self) -> None:
        """Return when the work has ended, well or not."""
        if not self._work.has_ended:
            # Training that waits here changes nothing.
            self._draft.transfer.let_change()
        self._work.join()

    def leave_soon(self, within_seconds: float = FAREWELL_SECONDS) -> None:
        """The script has failed: do not wait long for ranks that may be gone."""
        self._writer.leave_soon(within_seconds)


def report_failure(step: int, error: Exception) -> None:
    """Tell the log that a save failed."""
    log_event(_LOG, "checkpoint_save_failed", str(error), level=logging.WARNING, step=step, problem=str(error))
