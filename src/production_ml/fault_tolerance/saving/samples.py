"""Samples of a tensor's bytes: they notice a change that torch does not count, made through `.data` or numpy."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from production_ml.fault_tolerance.checkpoint_format.tensor_types import as_bytes

_WORDS: Final = 64
"""Spread over the tensor. Whoever changes weights changes most of them: clips, scales, swaps or overwrites them."""


def take_sample(tensor: torch.Tensor) -> bytes | None:
    """Some of the tensor's bytes, in a few microseconds; None of one that does not lie in this process in one piece.

    The sample of a contiguous copy is the same as that of its source.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    data = as_bytes(tensor)
    words = np.frombuffer(data, np.uint64, count=len(data) // 8)
    return words[:: max(1, len(words) // _WORDS)].tobytes()
