"""Resilience: checkpoints that are verified, and workers that come back."""

from production_ml.core.errors import MissingDependencyError

try:
    from production_ml.fault_tolerance.checkpoint_manager import CheckpointManager, ResumeState
    from production_ml.fault_tolerance.checkpoint_state.per_rank import PerRank, RankStates
    from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise MissingDependencyError("torch", extra="torch", purpose="Fault tolerance") from missing

__all__ = ["CheckpointManager", "PerRank", "RandomState", "RankStates", "ResumeState"]
