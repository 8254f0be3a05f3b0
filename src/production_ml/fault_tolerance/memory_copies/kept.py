"""What a keeper holds: its trainer's copies, those of a predecessor until there are newer ones, and a peer's."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from production_ml.fault_tolerance.memory_copies.record import CopyHead, CopyRecord, encode_record


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptCopy(CopyHead):
    """One rank's shard of one step in memory."""

    size_bytes: int
    record: str
    """As `encode_record` gives it."""
    descriptor: int | None
    """Of the image; None where the rank holds no tensors."""
    slot: int | None = None
    """Which of the trainer's images it is; None where it belongs to the keeper."""
    is_replica: bool = False
    """Whether it was made on another node."""
    is_everywhere: bool = False
    """Whether it is a replica, and the other ranks' replicas of its save have arrived too."""
    is_adopted: bool = False
    """Whether a predecessor held it."""

    @classmethod
    def of(
        cls,
        record: CopyRecord,
        descriptor: int | None,
        *,
        slot: int | None = None,
        is_replica: bool = False,
        is_everywhere: bool = False,
        is_adopted: bool = False,
    ) -> KeptCopy:
        """A copy, with its record made ready for who asks."""
        return cls(
            **record.head(),
            size_bytes=record.size_bytes,
            record=encode_record(record),
            descriptor=descriptor,
            slot=slot,
            is_replica=is_replica,
            is_everywhere=is_everywhere,
            is_adopted=is_adopted,
        )


class KeptCopies:
    """The copies of one keeper. Several threads may use it.

    Args:
        newest: How many of the newest steps the trainer wants to be kept.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._copies: list[KeptCopy] = []
        self._lock = threading.Lock()

    def all(self) -> list[KeptCopy]:
        """All that is held now."""
        with self._lock:
            return list(self._copies)

    def add(self, copy: KeptCopy) -> None:
        """Hold a copy; one of the same save and rank makes way for it."""
        with self._lock:
            self._drop(lambda held: (held.save_id, held.rank) == (copy.save_id, copy.rank))
            self._copies.append(copy)

    def expect_replica(self, rank: int, *, held: str | None) -> None:
        """Another copy of a rank of another node is on its way; it may never arrive, here or at another peer.

        So the newest that has arrived everywhere stays. Of a predecessor the newest stays too: it may have arrived
        everywhere when nobody lived to be told.

        Args:
            rank: The rank.
            held: The id of the newest save of this attempt whose copies have arrived at all peers.
        """
        with self._lock:
            for at, copy in enumerate(self._copies):
                if copy.is_replica and copy.save_id == held:
                    self._copies[at] = replace(copy, is_everywhere=True)
            replicas = [copy for copy in self._copies if copy.is_replica and copy.rank == rank]
            everywhere = [copy for copy in replicas if copy.is_everywhere][-1:]
            untold = [copy for copy in replicas if copy.is_adopted][-1:] if held is None else []
            self._drop(lambda copy: copy in replicas and copy not in everywhere and copy not in untold)

    def reuse(self, slot: int, *, agreed: int, replicated: bool) -> None:
        """The trainer begins to write into one of its images.

        Args:
            slot: Which.
            agreed: How many of the trainer's own steps stand in for those of its predecessor.
            replicated: Whether replicas of the trainer's own steps stand in for those of its predecessor's.
        """
        with self._lock:
            self._drop(lambda held: held.slot == slot)
            adopted = [held for held in self._copies if held.is_adopted and not held.is_replica]
            wanted = sorted({held.step for held in adopted}, reverse=True)[: max(0, self._newest - agreed)]
            self._drop(lambda held: held in adopted and held.step not in wanted)
            if replicated:
                self._drop(lambda held: held.is_adopted and held.is_replica)

    def forget(self, save_ids: Collection[str]) -> None:
        """These are not to be loaded any more."""
        with self._lock:
            self._drop(lambda held: held.save_id in save_ids)

    @contextlib.contextmanager
    def borrow(self, save_id: str, rank: int) -> Iterator[KeptCopy | None]:
        """A copy with a descriptor of the borrower's own, which stays good when the copy is dropped meanwhile."""
        with self._lock:
            found = next((held for held in self._copies if (held.save_id, held.rank) == (save_id, rank)), None)
            descriptor = None if found is None or found.descriptor is None else os.dup(found.descriptor)
        try:
            yield None if found is None else replace(found, descriptor=descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _drop(self, is_dropped: Callable[[KeptCopy], bool]) -> None:
        for held in [held for held in self._copies if is_dropped(held)]:
            self._copies.remove(held)
            # The trainer's own images are used again.
            if held.slot is None and held.descriptor is not None:
                os.close(held.descriptor)
