"""A batch cut along its samples, whatever tensors, lists and dicts its loader puts it into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from production_ml.core.errors import ConfigError
from production_ml.training.batch_plan import share_of


def batch_size(batch: Any) -> int:
    """The number of samples: the first dimension of the first tensor in it.

    Raises:
        ConfigError: There is no tensor that has one.
    """
    size = _size(batch)
    if size is None:
        raise ConfigError(
            "batch",
            type(batch).__name__,
            "holds no tensor whose first dimension counts samples",
            cure="Let collate_fn give tensors, or tuples, lists and dicts of them.",
        )
    return size


def pieces_of(batch: Any, piece_size: int | None) -> Iterator[tuple[Any, int]]:
    """The batch in pieces of at most `piece_size` samples, each with its size; None leaves it whole.

    Sizes differ by at most one. Tensors are views of the batch's own; what counts no samples goes with each piece.
    """
    size = batch_size(batch)
    count = 1 if piece_size is None else -(-size // piece_size)
    for index in range(count):
        part = share_of(size, index, count)
        yield (batch if count == 1 else _cut(batch, part, size)), len(part)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`, without waiting for those that come from pinned memory."""
    return _over_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _size(batch: Any) -> int | None:
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, list | tuple):
        return next((size for item in batch if (size := _size(item)) is not None), None)
    return None


def _cut(batch: Any, part: range, size: int) -> Any:
    def piece(item: Any) -> Any:
        # Text and the like, which a loader leaves in a list with one entry per sample.
        is_list_of_samples = isinstance(item, list) and len(item) == size and not _holds_tensors(item)
        return item[part.start : part.stop] if is_list_of_samples else _inside(item, piece, cut_tensor)

    def cut_tensor(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[part.start : part.stop] if tensor.dim() and len(tensor) == size else tensor

    return piece(batch)


def _over_tensors(batch: Any, change: Any) -> Any:
    return _inside(batch, lambda item: _over_tensors(item, change), change)


def _inside(item: Any, again: Any, change: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return change(item)
    if isinstance(item, Mapping):
        return {name: again(value) for name, value in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(again(value) for value in item))
    if isinstance(item, list | tuple):
        return type(item)(again(value) for value in item)
    return item


def _holds_tensors(items: list[Any]) -> bool:
    return any(_size(item) is not None for item in items)
