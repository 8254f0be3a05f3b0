"""How a global batch is spread: each rank's share, and the micro-batches that the share is accumulated from."""

from __future__ import annotations

from dataclasses import dataclass

from production_ml.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One rank's part of a global batch; parts of different ranks differ by at most one sample.

    Attributes:
        share: Places in the global batch; empty where the batch is smaller than the world size.
        micro_batches: The share in order, in pieces of at most the micro-batch size; sizes differ by at most one.
        weights: For each piece, what to multiply its mean loss by. Summed over pieces and averaged over ranks, as DDP
            and FSDP average gradients, this is the mean over the global batch.
    """

    share: range
    micro_batches: tuple[range, ...]
    weights: tuple[float, ...]


def share_of(size: int, rank: int, world_size: int) -> range:
    """The places of a batch of `size` samples that `rank` takes: size·rank/world_size, rounded down, and on."""
    return range(size * rank // world_size, size * (rank + 1) // world_size)


def plan_batch(size: int, *, rank: int, world_size: int, micro_batch_size: int) -> BatchPlan:
    """Spread a global batch of `size` samples.

    Raises:
        ConfigError: A size below 1, or a rank outside the world.
    """
    for name, value in (("size", size), ("world_size", world_size), ("micro_batch_size", micro_batch_size)):
        if value < 1:
            raise ConfigError(name, value, "must be at least 1")
    if not 0 <= rank < world_size:
        raise ConfigError("rank", rank, f"is not in a world of {world_size}")
    share = share_of(size, rank, world_size)
    pieces = -(-len(share) // micro_batch_size)
    parts = [share_of(len(share), piece, pieces) for piece in range(pieces)]
    micro_batches = tuple(share[part.start : part.stop] for part in parts)
    return BatchPlan(share, micro_batches, tuple(len(piece) * world_size / size for piece in micro_batches))
