"""What a load finds in memory: steps of which a keeper somewhere has the copy of every rank."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from production_ml.fault_tolerance.agreement import gather_json
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.record import CopyRecord, assemble, copy_name, decode_record
from production_ml.fault_tolerance.memory_copies.visit import GoneError, borrow, forget, what_keepers_hold


class ImageSource:
    """The image of a copy; read like a file, so that it does no harm when its owner makes it shorter.

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


class CopiedStep:
    """A step that can be loaded from memory. Close it when it has been read.

    Args:
        step: The step.
        save_id: Which save of it.
        holders: For each rank, in rank order, the sockets of keepers that have its copy.
    """

    def __init__(self, step: int, save_id: str, holders: Sequence[Sequence[Path]]) -> None:
        self.step = step
        self.save_id = save_id
        self._holders = holders
        self._images: dict[str, tuple[int, int]] = {}
        self.is_from_peer = False
        """Whether any of what was read came from another node."""

    def manifest(self) -> Manifest:
        """Borrow all ranks' copies, and put their records together.

        Raises:
            GoneError: A keeper is dead, or has the copy no more.
            DamagedCheckpointError: A record is not what was kept.
        """
        records = [self._borrow(rank) for rank in range(len(self._holders))]
        return assemble(records)

    def open_source(self, file: str) -> ImageSource:
        """The bytes of a shard."""
        descriptor, size_bytes = self._images[file]
        return ImageSource(copy_name(self.step, file), os.dup(descriptor), size_bytes)

    def close(self) -> None:
        """Give the images back."""
        for descriptor, _ in self._images.values():
            os.close(descriptor)
        self._images = {}

    def _borrow(self, rank: int) -> CopyRecord:
        for path in self._holders[rank]:
            with contextlib.suppress(GoneError):
                encoded, descriptor = borrow(path, self.save_id, rank)
                try:
                    record = decode_record(encoded, step=self.step)
                except BaseException:
                    if descriptor is not None:
                        os.close(descriptor)
                    raise
                for file, entry in record.part.files.items():
                    assert descriptor is not None  # noqa: S101 - a keeper keeps no shard without its image
                    self._images[file] = (descriptor, entry.size_bytes)
                return record
        raise GoneError(f"nobody has rank {rank}'s copy of step {self.step} any more")


@dataclass(frozen=True, slots=True)
class FoundCopies:
    """What all ranks found together."""

    place: MeetingPlace | None
    steps: Sequence[CopiedStep]
    """Newest first."""
    save_ids: Mapping[str, int]
    """The step of each save of which there is any copy."""

    def forget_all_but(self, step: int, damaged: Collection[str]) -> list[str]:
        """Let nobody load what is newer than the step that training goes on from, nor what is damaged.

        Returns:
            The ids of the saves that are forgotten.
        """
        doomed = [save_id for save_id, of in self.save_ids.items() if of > step or save_id in damaged]
        if self.place is not None:
            forget(self.place, doomed)
        return doomed


NOTHING_FOUND = FoundCopies(None, (), {})


def find_copies(place: MeetingPlace) -> FoundCopies:
    """Look what the keepers of this run hold. Every rank has to call this.

    Raises:
        CheckpointError: The ranks are in different calls.
    """
    here = [(path, copy) for path, held in what_keepers_hold(place) for copy in held["copies"]]
    told = gather_json([copy for _, copy in here], call="load_latest, copies in memory")
    everywhere = [copy for copies in told for copy in copies]
    paths: dict[tuple[str, int], list[Path]] = {}
    for path, copy in here:
        paths.setdefault((copy["save_id"], copy["rank"]), []).append(path)
    steps = [
        CopiedStep(step, save_id, [paths.get((save_id, rank), []) for rank in range(world_size)])
        for step, save_id, world_size in complete_saves(everywhere)
    ]
    return FoundCopies(place, steps, {copy["save_id"]: copy["step"] for copy in everywhere})


def complete_saves(copies: Iterable[Mapping[str, Any]]) -> list[tuple[int, str, int]]:
    """The (step, save id, world size) of each save of which every rank's copy is there, newest first."""
    ranks: dict[tuple[int, str, int], set[int]] = {}
    made_at: dict[str, float] = {}
    for copy in copies:
        ranks.setdefault((copy["step"], copy["save_id"], copy["world_size"]), set()).add(copy["rank"])
        made_at[copy["save_id"]] = max(made_at.get(copy["save_id"], 0.0), copy["created_at"])
    complete = [save for save, held in ranks.items() if len(held) == save[2]]
    return sorted(complete, key=lambda save: (save[0], made_at[save[1]]), reverse=True)
