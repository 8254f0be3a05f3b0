"""How a checkpoint is written: planned, staged into memory of its own, written beside the training, committed."""
