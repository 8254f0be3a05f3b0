"""A forward pass does not fit into memory."""

from __future__ import annotations

from typing import ClassVar

from production_ml.drill.faults.in_worker import InWorker


class OutOfMemory(InWorker):
    """torch.OutOfMemoryError from the model's forward pass, once, in one worker."""

    kind = "oom"
    signs: ClassVar[frozenset[str]] = frozenset({"micro_batch_halved", "worker_failed"})
    # A batch that is cut into smaller pieces is summed in another order.
    keeps_weights: ClassVar[bool] = False
