"""Whether and where this process's writer keeps copies in memory."""

from __future__ import annotations

from production_ml.core.distributed_env import DistributedEnv
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.saving.writer.client import Keeping


def keeping(directory: CheckpointDirectory, newest: int) -> Keeping | None:
    """The keeping of `newest` steps; None where none are wanted."""
    if not newest:
        return None
    env = DistributedEnv.read()
    return Keeping(place=MeetingPlace.of(directory.path), local_rank=env.local_rank, newest=newest)
