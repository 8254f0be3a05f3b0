"""The image of a shard: memory that holds a shard file byte for byte, and that another process can map too."""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from typing import Final

from production_ml.fault_tolerance.checkpoint_format.shard_layout import PAGE_BYTES

_SPARE_SHARE: Final = 128
_SPARE_PAGES: Final = 16


class ShardImage:
    """Anonymous shared memory (a memfd), which is freed when the last process that holds it lets go.

    The first copy into fresh memory costs three to seven times one into memory that is in use, for the kernel has to
    find and clear every page. So an image is laid out once and then reused. Its size is no matter of `/dev/shm`, which
    is 64 MB in many containers.

    Args:
        descriptor: An image that another process made; None makes a new one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("checkpoint-image", os.MFD_CLOEXEC) if descriptor is None else descriptor
        # A manager that is dropped without close() gives its memory back too.
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._map: mmap.mmap | None = None
        self._data = memoryview(b"")
        if descriptor is not None:
            self._remap(os.fstat(descriptor).st_size)

    @property
    def data(self) -> memoryview:
        """All bytes, those beyond the shard's end too."""
        return self._data

    def resize(self, size_bytes: int) -> bool:
        """Make room for a shard of that size; what was in it is lost where this returns True, for memory is new then.

        Raises:
            OSError: The memory for it is not there.
        """
        if size_bytes <= len(self._data):
            return False
        # Room to spare, because an extra that is new or longer would else move the whole image.
        pages = (size_bytes + size_bytes // _SPARE_SHARE) // PAGE_BYTES + _SPARE_PAGES
        self._unmap()
        # All of it now: a page that is not there at the time of the copy would end the training with SIGBUS.
        os.ftruncate(self.descriptor, 0)
        try:
            os.posix_fallocate(self.descriptor, 0, pages * PAGE_BYTES)
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            # What the kernel says of shared memory must not be taken for a full disk, which pauses saving.
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
        self._remap(pages * PAGE_BYTES)
        return True

    def close(self) -> None:
        """Let go of the memory."""
        self._unmap()
        self._close()

    def _remap(self, size_bytes: int) -> None:
        if size_bytes:
            self._map = mmap.mmap(self.descriptor, size_bytes)
            self._data = memoryview(self._map)

    def _unmap(self) -> None:
        self._data = memoryview(b"")
        # Tensors may still look into the old map, which then lives as long as they do.
        self._map = None
