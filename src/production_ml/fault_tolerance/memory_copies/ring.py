"""The images that saves are staged in, in turn: none is written into that holds one of the newest complete steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Final

from production_ml.fault_tolerance.agreement import gather_json
from production_ml.fault_tolerance.memory_copies.keeping import this_node
from production_ml.fault_tolerance.memory_copies.replication import Replication, peer_of
from production_ml.fault_tolerance.saving.staging import Staging
from production_ml.fault_tolerance.saving.writer.client import Writer
from production_ml.training.ranks import rank_and_world_size

_LOG: Final = logging.getLogger(__name__)


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
        self._complete: list[str] = []
        """The ids of the saves that all ranks hold; the newest comes last."""
        self._nodes: list[str] = []
        self._unreachable: list[int] = []
        """The ranks whose keepers are up, but cannot be reached from other nodes."""
        self._replication = Replication()

    @property
    def agreed(self) -> list[str]:
        """The ids of the newest complete saves, which are protected."""
        return self._complete[len(self._complete) - min(self._newest, len(self._complete)) :]

    @property
    def is_sent(self) -> bool:
        """Whether the next save is to be sent to peers."""
        return self._is_replicating and self._replication.under_way is None

    def settle(self, writer: Writer, *, call: str) -> None:
        """Find out which saves are complete: a rank's own copy is of use only with those of all the others.

        Raises:
            CheckpointError: The ranks are in different calls.
        """
        if not self._newest:
            return
        own = [slot.save_id for slot in self._slots if slot.save_id in writer.kept]
        asks = self._has_peers
        transfers = {"door": None, "done": None, "failed": None, **(writer.transfers() if asks else {})}
        answers = gather_json({"kept": own, "node": this_node(), **transfers}, call=f"{call}, copies in memory")
        self._complete = [one for one in own if one and all(one in theirs["kept"] for theirs in answers)]
        self._nodes = [theirs["node"] for theirs in answers]
        self._replication = self._replication.advance(answers, self._complete)
        if asks:
            peer = peer_of(rank_and_world_size()[0], self._nodes)
            writer.introduce(None if peer is None else answers[peer]["door"], held=self._replication.held)
            self._note_unreachable([r for r, theirs in enumerate(answers) if theirs["kept"] and not theirs["door"]])

    def next(self) -> Staging:
        """Where the next save is staged. What it held is lost."""
        protected = {*self.agreed, *self._replication.protected}
        free = [slot for slot in self._slots if slot.save_id is None or slot.save_id not in protected]
        slot = min(free, key=lambda slot: slot.save_id is not None, default=None) or _Slot()
        if slot in self._slots:
            self._slots.remove(slot)
        self._slots.append(slot)
        slot.save_id = None
        return slot.staging

    def announce(self, writer: Writer) -> None:
        """Tell the keeper that the image that was given last is about to be written into."""
        replicated = self._replication.held is not None
        stand_in = len(self.agreed) if replicated or not self._is_replicating else 0
        writer.reuse(self._slots[-1].staging.image, agreed=stand_in, replicated=replicated)

    def hold(self, save_id: str) -> None:
        """The image that was given last holds this save."""
        if self.is_sent:
            self._replication = replace(self._replication, under_way=save_id)
        self._slots[-1].save_id = save_id

    def close(self) -> None:
        """Let go of all memory; what a keeper holds stays."""
        for slot in self._slots:
            slot.staging.close()

    def _note_unreachable(self, ranks: list[int]) -> None:
        """Say once what a lost node would cost."""
        if ranks and not self._unreachable and rank_and_world_size()[0] == ranks[0]:
            _LOG.warning(
                "Copies of checkpoints in memory are not sent to other nodes: the keepers of the ranks %s have no "
                "address there. A crash of a worker is recovered from memory all the same, but a lost node costs all "
                "steps since the newest checkpoint on disk. Start the ranks with torchrun or srun, and set MASTER_ADDR "
                "to a name that every node knows.",
                ", ".join(map(str, ranks)),
            )
        self._unreachable = ranks

    @property
    def _is_replicating(self) -> bool:
        """Replicas are of use only all together: where one keeper cannot be reached, none is sent."""
        return self._has_peers and not self._unreachable

    @property
    def _has_peers(self) -> bool:
        return len(set(self._nodes)) > 1
