"""production_ml turns a PyTorch training script into a production system; each room is imported by its own name."""

__version__ = "0.1.0"
