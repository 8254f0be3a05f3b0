"""Resilience: checkpoints that are verified, and workers that come back.

What is public is imported when it is asked for: the process that writes checkpoints has no use for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from production_ml.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_manager import CheckpointManager
    from production_ml.fault_tolerance.checkpoint_state.per_rank import PerRank, RankStates
    from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState
    from production_ml.fault_tolerance.checkpoint_state.resume_state import ResumeState
    from production_ml.fault_tolerance.elastic_training import ElasticTraining

__all__ = ["CheckpointManager", "ElasticTraining", "PerRank", "RandomState", "RankStates", "ResumeState"]

_HOMES: Final = {
    "CheckpointManager": "production_ml.fault_tolerance.checkpoint_manager",
    "ElasticTraining": "production_ml.fault_tolerance.elastic_training",
    "PerRank": "production_ml.fault_tolerance.checkpoint_state.per_rank",
    "RandomState": "production_ml.fault_tolerance.checkpoint_state.random_state",
    "RankStates": "production_ml.fault_tolerance.checkpoint_state.per_rank",
    "ResumeState": "production_ml.fault_tolerance.checkpoint_state.resume_state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise MissingDependencyError("torch", extra="torch", purpose="Fault tolerance") from missing


def __dir__() -> list[str]:
    return __all__
