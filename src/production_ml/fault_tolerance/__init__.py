"""Resilience: checkpoints that are verified, and workers that come back."""

from production_ml.fault_tolerance.checkpoint_manager import CheckpointManager, ResumeState

__all__ = ["CheckpointManager", "ResumeState"]
