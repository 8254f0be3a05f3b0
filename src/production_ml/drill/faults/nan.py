"""A forward pass gives NaN, as a bad batch or an overflow does."""

from __future__ import annotations

from typing import ClassVar

from production_ml.drill.faults.in_worker import InWorker


class NotANumber(InWorker):
    """The model's output is NaN, once, in one worker."""

    kind = "nan"
    signs: ClassVar[frozenset[str]] = frozenset({"divergence_found", "worker_failed"})
    # The batch that is skipped is not learned from.
    keeps_weights: ClassVar[bool] = False
