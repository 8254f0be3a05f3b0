"""The images that saves are staged in, in turn: none is written into that holds one of the newest complete steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from production_ml.fault_tolerance.agreement import gather_json
from production_ml.fault_tolerance.saving.staging import Staging


@dataclass(slots=True, eq=False)
class _Slot:
    staging: Staging = field(default_factory=Staging)
    save_id: str | None = None


class ImageRing:
    """One image more than steps are kept; they are made as they are needed.

    Args:
        newest: How many of the newest complete steps are left alone; with 0 there is one image, used each time.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._slots = [_Slot()]
        """Those written last come last."""
        self._agreed: list[str] = []

    @property
    def agreed(self) -> list[str]:
        """The ids of the newest complete saves, which are protected; the newest comes last."""
        return self._agreed[len(self._agreed) - min(self._newest, len(self._agreed)) :]

    def settle(self, kept: Collection[str], *, call: str) -> None:
        """Find out which saves are complete: a rank's own copy is of use only with those of all the others.

        Args:
            kept: The ids of the saves that this rank's keeper holds.
            call: What the ranks are in.

        Raises:
            CheckpointError: The ranks are in different calls.
        """
        if self._newest:
            own = [slot.save_id for slot in self._slots if slot.save_id in kept]
            answers = gather_json(own, call=call)
            self._agreed = [save_id for save_id in own if save_id and all(save_id in theirs for theirs in answers)]

    def next(self) -> Staging:
        """Where the next save is staged. What it held is lost."""
        free = [slot for slot in self._slots if slot.save_id is None or slot.save_id not in self.agreed]
        slot = min(free, key=lambda slot: slot.save_id is not None, default=None) or _Slot()
        if slot in self._slots:
            self._slots.remove(slot)
        self._slots.append(slot)
        slot.save_id = None
        return slot.staging

    def hold(self, save_id: str) -> None:
        """The image that was given last holds this save."""
        self._slots[-1].save_id = save_id

    def close(self) -> None:
        """Let go of all memory; what a keeper holds stays."""
        for slot in self._slots:
            slot.staging.close()
