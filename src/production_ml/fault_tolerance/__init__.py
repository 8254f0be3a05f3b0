"""Resilience: checkpoints that are verified, and workers that come back.

What is public is imported when it is asked for: the process that writes checkpoints has no use for torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from production_ml.core.errors import MissingDependencyError
from production_ml.fault_tolerance.pulse import PULSE_VARIABLE

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_manager import CheckpointManager
    from production_ml.fault_tolerance.checkpoint_state.per_rank import PerRank, RankStates
    from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState
    from production_ml.fault_tolerance.checkpoint_state.resume_state import ResumeState
    from production_ml.fault_tolerance.elastic_training import ElasticTraining
    from production_ml.fault_tolerance.recovery.hang import HangLimits, HangWatch, paused

__all__ = [
    "CheckpointManager",
    "ElasticTraining",
    "HangLimits",
    "HangWatch",
    "PerRank",
    "RandomState",
    "RankStates",
    "ResumeState",
    "paused",
]

_HOMES: Final = {
    "CheckpointManager": "production_ml.fault_tolerance.checkpoint_manager",
    "ElasticTraining": "production_ml.fault_tolerance.elastic_training",
    "HangLimits": "production_ml.fault_tolerance.recovery.hang",
    "HangWatch": "production_ml.fault_tolerance.recovery.hang",
    "PerRank": "production_ml.fault_tolerance.checkpoint_state.per_rank",
    "RandomState": "production_ml.fault_tolerance.checkpoint_state.random_state",
    "RankStates": "production_ml.fault_tolerance.checkpoint_state.per_rank",
    "ResumeState": "production_ml.fault_tolerance.checkpoint_state.resume_state",
    "paused": "production_ml.fault_tolerance.recovery.hang",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        public = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise MissingDependencyError("torch", extra="torch", purpose="Fault tolerance") from missing
    _answer_launcher()  # again: now torch is there, whose steps are to be counted
    return public


def _answer_launcher() -> None:
    """Let a launcher that watches for hangs hear of this process's steps, whichever loop makes them."""
    if PULSE_VARIABLE in os.environ:
        from production_ml.fault_tolerance.recovery.hang.answering import answer_launcher

        answer_launcher()


_answer_launcher()


def __dir__() -> list[str]:
    return __all__
