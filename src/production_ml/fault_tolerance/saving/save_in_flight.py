"""A save that is under way beside the training: one thread, one outcome, which is never lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from production_ml.core.errors import CheckpointWriteError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.saving.commit import carry_out
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder
from production_ml.fault_tolerance.saving.patience import FAREWELL_SECONDS, Patience

_LOG = logging.getLogger(__name__)


class SaveInFlight:
    """The background work of one save.

    The thread is not a daemon: a script that ends without `close()` still gets its last checkpoint.

    Args:
        order: What to write.
        lock: Rank 0's claim on the unfinished directory; let go when the save has ended.
        on_commit: Called on rank 0 after the commit, in the same thread.
    """

    def __init__(self, order: SaveOrder, *, lock: SaveLock | None, on_commit: Callable[[Manifest], None]) -> None:
        self._order = order
        self._lock = lock
        self._on_commit = on_commit
        self._patience = Patience()
        self._thread: threading.Thread | None = None
        self.error: CheckpointWriteError | None = None
        """Why there is no checkpoint; None while it is under way, and after a commit."""

    def start(self) -> None:
        """Work in the background."""
        self._thread = threading.Thread(target=self.run, name=f"checkpoint-step-{self._order.step}")
        self._thread.start()

    def run(self) -> None:
        """Work, and keep what came of it."""
        manifest = None
        try:
            manifest = carry_out(self._order, self._patience)
        except CheckpointWriteError as error:
            self.error = error
        except Exception as problem:  # noqa: BLE001 - a thread has nobody to raise to: the next save() raises it
            self.error = CheckpointWriteError(
                f"The checkpoint of step {self._order.step} failed: {problem!r}", meaning=UNCHANGED
            )
            self.error.__cause__ = problem
        finally:
            if self._lock is not None:
                self._lock.release()
        if self.error is not None:
            report_failure(self._order.step, self.error)
        elif manifest is not None:
            self._follow_up(manifest)

    def _follow_up(self, manifest: Manifest) -> None:
        try:
            self._on_commit(manifest)
        except Exception:  # noqa: BLE001 - the checkpoint is there: to call it failed would be wrong, whatever fails now
            _LOG.exception("Step %d is committed, but what follows a commit (such as pruning) failed", manifest.step)

    def join(self) -> None:
        """Return when the work has ended, well or not."""
        if self._thread is not None:
            self._thread.join()

    def leave_soon(self, within_seconds: float = FAREWELL_SECONDS) -> None:
        """The script has failed: do not wait long for ranks that may be gone."""
        self._patience.leave_soon(within_seconds)


def report_failure(step: int, error: Exception) -> None:
    """Tell the log that a save failed."""
    log_event(_LOG, "checkpoint_save_failed", str(error), level=logging.WARNING, step=step, problem=str(error))
