"""The process that writes: it shares the image of a shard with the trainer, and leaves the trainer its interpreter."""
