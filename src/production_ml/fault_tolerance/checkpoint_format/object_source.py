"""A shard in an object store as a source of bytes: fetched in blocks, several at once, a little ahead of the reader."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.storage.base import ObjectStore

BLOCK_BYTES: Final = 8 << 20
"""Large enough that a request's latency hardly counts, small enough that several fit in memory."""
_PARALLEL: Final = 4
_AHEAD: Final = 4
"""Blocks fetched beyond the one that a reader who reads on and on waits for: one stream alone fills no network."""
_KEPT: Final = 24
"""Blocks in memory for all shards that are open, 192 MiB: a load on one rank may open hundreds. Eight threads that read
on, each in a tensor's block of 16 MiB, are amid 16 of them at once; with 12, half of all were fetched twice."""

_lock: Final = threading.Lock()
_blocks: Final[OrderedDict[tuple[ObjectSource, int], Future[bytes]]] = OrderedDict()
"""What was asked for last stands last."""


class ObjectSource:
    """The bytes of one object, read by several threads at once; a `ByteSource`.

    Small reads (a header, ten thousand small tensors) are served from blocks that are here already.

    Args:
        store: Where the object is.
        key: Its key.
        step: The checkpoint's step, for messages.
        block_bytes: How much is fetched by one request.

    Raises:
        DamagedCheckpointError: The object is missing.
        CheckpointError: The store does not give it.
    """

    def __init__(self, store: ObjectStore, key: str, *, step: int, block_bytes: int = BLOCK_BYTES) -> None:
        self.name = f"{store.address}/{key}"
        self._store = store
        self._key = key
        self._step = step
        self._block_bytes = block_bytes
        try:
            self.size_bytes = store.size(key)
        except OSError as problem:
            raise unreadable_object(self.name, problem, step=step) from problem
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="shard-fetch")
        self._expected = 0
        """The block that comes next where one reads on and on."""

    def readinto(self, position: int, buffer: memoryview) -> int:
        """Fill `buffer` from `position` on; fewer bytes than it holds mean that there are no more.

        Raises:
            DamagedCheckpointError: The object is missing.
            CheckpointError: The store does not give it.
        """
        end = min(position + len(buffer), self.size_bytes)
        done = 0
        while position + done < end:
            index, begin = divmod(position + done, self._block_bytes)
            block = self._fetched(index, last=(end - 1) // self._block_bytes)
            piece = memoryview(block)[begin : begin + end - position - done]
            if not piece:
                break  # the store has less of it than it said
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def prefetch(self, position: int, size_bytes: int) -> None:
        """These bytes will be wanted soon."""
        end = min(position + size_bytes, self.size_bytes)
        if position < end:
            self._fetch(position // self._block_bytes, -(-end // self._block_bytes))

    def close(self) -> None:
        """Fetch no more, and let go of the memory."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with _lock:
            for place in [place for place in _blocks if place[0] is self]:
                del _blocks[place]

    def _fetched(self, index: int, last: int) -> bytes:
        reads_on = index in (self._expected, self._expected - 1)
        self._expected = index + 1
        wanted = last + 1 + (_AHEAD if reads_on else 0)
        block = self._fetch(index, min(wanted, index + 1 + _AHEAD))
        try:
            return block.result()
        except OSError as problem:
            raise unreadable_object(self.name, problem, step=self._step) from problem

    def _fetch(self, first: int, beyond: int) -> Future[bytes]:
        """Have the blocks fetched that are not here; gives the first."""
        with _lock:
            for index in range(first, min(beyond, first + _KEPT, -(-self.size_bytes // self._block_bytes))):
                known = _blocks.get((self, index))
                # What failed when it was fetched ahead is no answer to one who asks now.
                if known is None or (known.done() and known.exception() is not None):
                    _blocks[self, index] = self._pool.submit(self._get, index)
                _blocks.move_to_end((self, index))
            block = _blocks[self, first]
            while len(_blocks) > _KEPT:
                # Not cancelled: another thread may wait for it.
                _blocks.popitem(last=False)
        return block

    def _get(self, index: int) -> bytes:
        begin = index * self._block_bytes
        return self._store.get(self._key, begin, min(begin + self._block_bytes, self.size_bytes))


def unreadable_object(name: str, problem: OSError, *, step: int) -> CheckpointError:
    """What a store's error means: damage where the object is gone, else what passes or what a person cures."""
    if problem.errno == errno.ENOENT:
        return DamagedCheckpointError(name, "the object is missing", step=step)
    if problem.errno == errno.EACCES:
        cure = "Give this user credentials that may read there, then start again."
    else:
        cure = "Look whether the store can be reached from here, then start again."
    return CheckpointError(
        f"{name}: cannot be read ({problem.strerror}).",
        meaning="Nothing was loaded, and the checkpoint is left as it is.",
        cure=cure,
    )
