"""The source of a checkpoint's tensors, as torch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.interchange.source import Bytes, CheckpointSource


def read_tensor(source: CheckpointSource, name: str) -> torch.Tensor:
    """A whole tensor in new CPU memory.

    Raises:
        DamagedCheckpointError: It is not what was written.
    """
    return _tensor(source, name, source.whole(name))


def read_box(source: CheckpointSource, name: str, offsets: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A part of a tensor in new CPU memory.

    Raises:
        DamagedCheckpointError: It is not what was written.
    """
    return _tensor(source, name, source.box(name, offsets, shape))


def _tensor(source: CheckpointSource, name: str, data: Bytes) -> torch.Tensor:
    dtype = DTYPES[source.manifest.tensors[name].dtype]
    if not data.size:
        return torch.empty(data.shape[:-1], dtype=dtype)
    return torch.from_numpy(data.reshape(-1)).view(dtype).view(data.shape[:-1])
