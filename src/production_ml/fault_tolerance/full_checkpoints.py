"""Full checkpoints: a model's weights in one safetensors file that any tool can open, made from what is committed."""

from __future__ import annotations

import logging
import operator
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointError, ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_arguments import check_full
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated
from production_ml.fault_tolerance.save_schedule import EveryEpochs
from production_ml.training.ranks import rank_and_world_size

FULL: Final = "full"
_LOG: Final = logging.getLogger(__name__)


class FullCheckpoints:
    """Writes the full checkpoints that were asked for, each after the commit of its step, on rank 0.

    It reads what the ranks have written instead of gathering it from them: training and its memory have no part in it.

    Args:
        place: Where checkpoints are kept; full ones are beside them, in `full/`.
        every: At the end of how many epochs one is due; 0 for never, None for each epoch where there can be any.

    Raises:
        ConfigError: `every` is no such number, or the checkpoints are in an object store.
    """

    def __init__(self, place: CheckpointPlace, *, every: int | None = None) -> None:
        if every:
            _check_place(place, "full_every", every)
        if every is None:
            every = 1 if isinstance(place, CheckpointDirectory) else 0
        self._place = place
        self._every = EveryEpochs(every) if every else None
        self._wanted: set[int] = set()

    def is_due(self, epoch_ended: int | None) -> bool:
        """Whether the end of this epoch, counted from 1, calls for one; None is within an epoch."""
        return epoch_ended is not None and self._every is not None and self._every.is_due(epoch_ended)

    def want(self, full: Any, step: Any) -> ConfigError | None:
        """Write the one of `step` once that is committed, if `full` says so.

        Returns:
            Why there can be none; the other ranks wait to hear of it before this one raises it.
        """
        try:
            check_full(full)
            if full:
                _check_place(self._place, "full", True)
        except ConfigError as refusal:
            return refusal
        # What is no step is refused by the save itself, which tells the other ranks.
        if full and rank_and_world_size()[0] == 0 and hasattr(step, "__index__"):
            self._wanted.add(operator.index(step))
        return None

    def give_up_all_but(self, under_way: int | None) -> None:
        """Tell the log of those that are still waited for though no save of their step is under way any more."""
        for step in sorted(self._wanted - {under_way}):
            self._wanted.discard(step)
            _tell_lost(step, f"Step {step} was not saved, and so not as a full checkpoint either")

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
            _tell_lost(step, f"Step {step} is saved, but not as a full checkpoint: {problem}", problem=str(problem))
            return
        seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
        message = f"Wrote the weights of step {step} whole to {target}"
        log_event(_LOG, "checkpoint_full_saved", message, step=step, path=str(target), duration_seconds=seconds)


def _check_place(place: CheckpointPlace, name: str, value: Any) -> None:
    if not isinstance(place, CheckpointDirectory):
        raise ConfigError(
            name,
            value,
            "full checkpoints are written beside those in a directory, not in an object store",
            cure=f"Make one from any checkpoint with: production-ml checkpoint export {place.url}",
        )


def _tell_lost(step: int, what: str, problem: str = "not saved") -> None:
    log_event(_LOG, "checkpoint_full_failed", what, level=logging.WARNING, step=step, problem=problem)
