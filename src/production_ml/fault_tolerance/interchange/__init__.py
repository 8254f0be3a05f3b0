"""The way to other formats and back: safetensors, torch.save, and torch.distributed.checkpoint, on disk and in its API."""
