"""What a load finds in memory: steps of which a keeper somewhere has the copy of every rank."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.agreement import gather_json
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.memory_copies.image_source import ImageSource
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.peer_door import Door
from production_ml.fault_tolerance.memory_copies.peer_visit import fetch
from production_ml.fault_tolerance.memory_copies.record import CopyRecord, assemble, copy_name, decode_record
from production_ml.fault_tolerance.memory_copies.visit import GoneError, borrow, forget, what_keepers_hold

_LOG: Final = logging.getLogger(__name__)

Holder: TypeAlias = Path | Door
"""Where a keeper is met that has a copy: on this host, or on another node."""


class CopiedStep:
    """A step that can be loaded from memory. Close it when it has been read.

    Args:
        step: The step.
        save_id: Which save of it.
        holders: For each rank, in rank order, who has its copy; those of this host come first.
    """

    def __init__(self, step: int, save_id: str, holders: Sequence[Sequence[Holder]]) -> None:
        self.step = step
        self.save_id = save_id
        self._holders = holders
        self._images: dict[str, tuple[int, int]] = {}
        self._afar: dict[str, tuple[Door, int, int]] = {}
        self.is_from_peer = False
        """Whether any of what was read came from another node."""

    def manifest(self) -> Manifest:
        """Borrow all ranks' copies of this host, and put all ranks' records together.

        Raises:
            GoneError: A keeper is dead, or has the copy no more.
            DamagedCheckpointError: A record is not what was kept.
        """
        return assemble([self._borrow(rank) for rank in range(len(self._holders))])

    def open_source(self, file: str) -> ImageSource:
        """The bytes of a shard, which come from another node only when they are asked for.

        Raises:
            GoneError: They do not come.
        """
        if file in self._afar:
            door, rank, size_bytes = self._afar.pop(file)
            _, descriptor = fetch(door, self.save_id, rank, is_record_only=False)
            if descriptor is None:
                raise GoneError("the peer holds another copy now")
            self._images[file] = descriptor, size_bytes
            self.is_from_peer = True
        descriptor, size_bytes = self._images[file]
        return ImageSource(copy_name(self.step, file), os.dup(descriptor), size_bytes)

    def close(self) -> None:
        """Give the images back."""
        for descriptor, _ in self._images.values():
            os.close(descriptor)
        self._images, self._afar = {}, {}

    def _borrow(self, rank: int) -> CopyRecord:
        damage: DamagedCheckpointError | None = None
        for holder in self._holders[rank]:
            try:
                return self._borrow_from(holder, rank)
            except GoneError:
                continue
            except DamagedCheckpointError as found:
                _LOG.warning("%s; the next who holds a copy of it is asked", found.what)
                damage = found
        if damage is not None:
            raise damage
        raise GoneError(f"nobody has rank {rank}'s copy of step {self.step} any more")

    def _borrow_from(self, holder: Holder, rank: int) -> CopyRecord:
        if isinstance(holder, Door):
            encoded, descriptor = fetch(holder, self.save_id, rank, is_record_only=True)
        else:
            encoded, descriptor = borrow(holder, self.save_id, rank)
        with contextlib.ExitStack() as undo:
            if descriptor is not None:
                undo.callback(os.close, descriptor)
            record = decode_record(encoded, step=self.step)
            undo.pop_all()
        for file, entry in record.part.files.items():
            if isinstance(holder, Door):
                self._afar[file] = holder, rank, entry.size_bytes
            elif descriptor is not None:
                self._images[file] = descriptor, entry.size_bytes
        return record


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
    local: dict[tuple[str, int], list[Holder]] = {}
    here = []
    for path, held in what_keepers_hold(place):
        here.append({"copies": held["copies"], "door": held["door"]})
        for copy in held["copies"]:
            local.setdefault((copy["save_id"], copy["rank"]), []).append(path)
    keepers = [keeper for keepers in gather_json(here, call="load_latest, copies in memory") for keeper in keepers]
    afar: dict[tuple[str, int], list[Holder]] = {}
    for keeper in keepers:
        for copy in keeper["copies"] if keeper["door"] else ():
            afar.setdefault((copy["save_id"], copy["rank"]), []).append(Door(*keeper["door"]))
    everywhere = [copy for keeper in keepers for copy in keeper["copies"]]

    def holders(save_id: str, rank: int) -> list[Holder]:
        return local.get((save_id, rank), []) + afar.get((save_id, rank), [])

    steps = [
        CopiedStep(step, save_id, [holders(save_id, rank) for rank in range(world_size)])
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
