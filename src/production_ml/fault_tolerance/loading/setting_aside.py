"""What becomes of the damage that a load has passed over: evidence is kept, and a person is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.agreement import told
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.verification import Damage
from production_ml.fault_tolerance.loading.damage_report import describe
from production_ml.fault_tolerance.loading.newest_good import Search

_LOG: Final = logging.getLogger(__name__)


def set_damaged_aside(place: CheckpointPlace, found: Search) -> None:
    """Move damaged checkpoints to quarantine, and tell of them and of damaged copies in memory. For rank 0."""
    resumed_step = found.newest_good.manifest.step if found.newest_good else None
    for step, damage in found.damaged.items():
        kept_in = _quarantine(place, step, damage)
        message = describe(
            step,
            damage,
            resumed_step=resumed_step,
            kept_in=kept_in,
            directory=place.url,
            is_first=step == max(found.damaged),
        )
        _tell(damage[0], message, quarantined_to=str(kept_in) if kept_in else None)
    for damage in found.damaged_copies.values():
        first, step = damage[0], resumed_step or 0
        message = (
            f"{first}\nThe copy of step {first.step} in memory is passed over. Resuming from step {step}.\n"
            "Memory that flips bits damages training too: look for corrected and uncorrected errors (edac-util, "
            "rasdaemon)."
        )
        _tell(first, message, quarantined_to=None)


def _quarantine(place: CheckpointPlace, step: int, damage: Sequence[Damage]) -> object | None:
    found_at = iso_utc(SYSTEM_CLOCK.wall_seconds())
    reason = {"step": step, "found_at": found_at, "damage": [found.to_dict() for found in damage]}
    try:
        return place.quarantine(step, reason)
    except Exception as problem:  # noqa: BLE001 - the other ranks have resumed, and wait for this one
        # A disk that is mounted read-only after an error: resuming matters more than tidiness.
        _LOG.warning("%s: cannot be moved to quarantine (%s)", place.committed(step), told(problem))
        return None


def _tell(first: Damage, message: str, *, quarantined_to: str | None) -> None:
    log_event(
        _LOG,
        "checkpoint_damaged",
        message,
        level=logging.WARNING,
        step=first.step,
        file=first.file,
        tensor=first.tensor,
        problem=first.problem,
        quarantined_to=quarantined_to,
    )
