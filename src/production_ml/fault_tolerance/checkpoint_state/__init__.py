"""What is saved: a model, its optimizer and the rest of a training's state, as tensors by name plus JSON, and back."""

from production_ml.fault_tolerance.checkpoint_state.capture import Captured, capture
from production_ml.fault_tolerance.checkpoint_state.restoring import Restoration, plan_restoration

__all__ = ["Captured", "Restoration", "capture", "plan_restoration"]
