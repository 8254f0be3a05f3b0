"""A shard's bytes in an image; read like a file, so that it does no harm when its owner makes it shorter."""

from __future__ import annotations

import os


class ImageSource:
    """The image of a copy.

    Args:
        name: For messages.
        descriptor: Of the image; this source's own.
        size_bytes: Of the shard, behind which the image has room to spare.
    """

    def __init__(self, name: str, descriptor: int, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = min(size_bytes, os.fstat(descriptor).st_size)
        self._descriptor = descriptor

    def readinto(self, position: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], position + done)
            if not count:
                break
            done += count
        return done

    def prefetch(self, position: int, size_bytes: int) -> None:
        """Memory is here already."""

    def close(self) -> None:
        os.close(self._descriptor)
