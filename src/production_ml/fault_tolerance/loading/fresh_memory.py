"""Memory for what is loaded: the first touch of a page is what a load from a warm cache spends most of its time on."""

from __future__ import annotations

import ctypes
import math
from typing import Final

import torch

_HUGE_PAGE_BYTES: Final = 2 << 20
_MADV_HUGEPAGE: Final = 14
_libc: Final = ctypes.CDLL(None)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A new contiguous CPU tensor, in huge pages where it is large: one page fault then stands for 512."""
    tensor = torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * tensor.element_size()
    if size >= 2 * _HUGE_PAGE_BYTES:
        begin = -(-tensor.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        end = (tensor.data_ptr() + size) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        # Advice: where the kernel has no huge pages it refuses, and small ones do.
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_HUGEPAGE)
    return tensor
