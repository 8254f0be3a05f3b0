"""Full checkpoints: a model's weights in one safetensors file that any tool can open, made from what is committed."""

from __future__ import annotations

import logging
from typing import Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointError, ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated

FULL: Final = "full"
_LOG: Final = logging.getLogger(__name__)


class FullCheckpoints:
    """Writes the full checkpoints that were asked for, each after the commit of its step, on rank 0.

    It reads what the ranks have written instead of gathering it from them: training and its memory have no part in it.

    Args:
        place: Where checkpoints are kept; full ones are beside them, in `full/`.
    """

    def __init__(self, place: CheckpointPlace) -> None:
        self._place = place
        self._wanted: set[int] = set()

    def want(self, step: int) -> None:
        """Write the one of `step` once that is committed.

        Raises:
            ConfigError: Checkpoints are in an object store.
        """
        if not isinstance(self._place, CheckpointDirectory):
            raise ConfigError(
                "full",
                True,
                "full checkpoints are written beside those in a directory, not in an object store",
                cure=f"Make one from any checkpoint with: production-ml checkpoint export {self._place.url}",
            )
        self._wanted.add(step)

    def write(self, step: int) -> None:
        """Write the one of `step`, if it is wanted. That it fails is no failed save, and is told by the log alone."""
        if step not in self._wanted or not isinstance(self._place, CheckpointDirectory):
            return
        self._wanted.discard(step)
        target = self._place.path / FULL / f"step-{step:08d}.safetensors"
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        try:
            target.parent.mkdir(exist_ok=True)
            write_consolidated(self._place, step, target)
        except (CheckpointError, OSError) as problem:
            what = f"Step {step} is saved, but not as a full checkpoint: {problem}"
            log_event(_LOG, "checkpoint_full_failed", what, level=logging.WARNING, step=step, problem=str(problem))
            return
        seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
        message = f"Wrote the weights of step {step} whole to {target}"
        log_event(_LOG, "checkpoint_full_saved", message, step=step, path=str(target), duration_seconds=seconds)
