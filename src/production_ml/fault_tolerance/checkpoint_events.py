"""The events of a checkpoint's life, as the log is told of them."""

from __future__ import annotations

import logging
from typing import Final

from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.record import copy_name
from production_ml.fault_tolerance.saving.save_in_flight import Committed

_LOG: Final = logging.getLogger(__name__)


def report_saved(place: CheckpointPlace, committed: Committed, duration_seconds: float, stall_seconds: float) -> None:
    """A checkpoint is committed; it was under way for so long, and held training up for so long."""
    path = str(place.committed(committed.step))
    log_event(
        _LOG,
        "checkpoint_saved",
        f"Saved step {committed.step} to {path}",
        step=committed.step,
        duration_seconds=duration_seconds,
        stall_seconds=stall_seconds,
        size_bytes=committed.size_bytes,
        path=path,
    )


def report_kept(committed: Committed, duration_seconds: float, stall_seconds: float) -> None:
    """A step is kept in memory alone: often, so it is no line for people."""
    log_event(
        _LOG,
        "checkpoint_kept",
        f"Keeping step {committed.step} in memory",
        level=logging.DEBUG,
        step=committed.step,
        duration_seconds=duration_seconds,
        stall_seconds=stall_seconds,
        size_bytes=committed.size_bytes,
    )


def report_nothing(place: CheckpointPlace) -> None:
    """A first start, or one that looks in the wrong place: only the path tells them apart."""
    where = str(place.path.absolute()) if isinstance(place, CheckpointDirectory) else place.url
    _LOG.info("Nothing to resume in %s: training starts from step 0", where)


def report_loaded(place: CheckpointPlace, step: int, source: str, duration_seconds: float) -> None:
    """Training goes on from a step, which was read from `disk`, `memory` or the memory of a `peer`."""
    path = str(place.committed(step)) if source == "disk" else copy_name(step)
    where = {"disk": path, "memory": "in memory", "peer": "in another node's memory"}[source]
    log_event(
        _LOG,
        "checkpoint_loaded",
        f"Resuming from step {step} ({where})",
        step=step,
        source=source,
        duration_seconds=duration_seconds,
        path=path,
    )
