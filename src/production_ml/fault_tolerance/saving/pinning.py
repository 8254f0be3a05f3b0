"""Pinned images: only into pinned memory does a GPU copy at the full speed of the bus, and beside its work."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Final

import torch

from production_ml.fault_tolerance.saving.image import ShardImage

_LOG: Final = logging.getLogger(__name__)


class PinnedImage:
    """The pin in an image, which has to be taken out before the image moves."""

    def __init__(self) -> None:
        self._unpin: Callable[[], object] | None = None

    @property
    def is_pinned(self) -> bool:
        return self._unpin is not None

    def pin(self, image: ShardImage) -> None:
        """Pin it; where the system does not let us, copies are slower and hold training up, but are right."""
        if not len(image.data):
            return
        whole = torch.frombuffer(image.data, dtype=torch.uint8)
        problem = torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0)  # type: ignore[no-untyped-call]
        if int(problem) != 0:
            _LOG.warning("%d bytes for checkpoints cannot be pinned (%s): saves are slower", whole.numel(), problem)
            return
        # A manager that is dropped without close() takes the pin out too: it comes before the map goes.
        self._unpin = unpin = weakref.finalize(image, _unregister, whole.data_ptr(), os.getpid())
        unpin.atexit = False  # the end of the process frees it, and the driver may be gone by then

    def release(self) -> None:
        """Take the pin out."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None


def _unregister(address: int, pid: int) -> None:
    if pid == os.getpid():  # a fork has no GPU
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
