"""Which saves are sent to peers: one at a time on all ranks, for a lost node's copies are of use only all together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Replication:
    """How far it is. All ranks hear the same answers, and so know the same."""

    held: str | None = None
    """The id of the newest save of which all peers hold the copies."""
    under_way: str | None = None
    """The id of the save whose copies are being sent."""

    def advance(self, answers: Sequence[Mapping[str, Any]], complete: Collection[str]) -> Replication:
        """Take in what the ranks tell.

        Args:
            answers: For each rank, the ids of the saves whose sending was `done` or `failed` last.
            complete: The ids of the saves that all ranks still hold themselves.
        """
        held = self.held if self.held in complete else None
        sent = self.under_way
        if sent is None or sent not in complete or any(theirs["failed"] == sent for theirs in answers):
            return Replication(held, None)
        if all(theirs["done"] == sent for theirs in answers):
            return Replication(sent, None)
        return Replication(held, sent)

    @property
    def protected(self) -> set[str]:
        """The saves that every rank has to go on holding: a lost rank's replica needs the others' own copies."""
        return {save_id for save_id in (self.held, self.under_way) if save_id is not None}


def peer_of(rank: int, nodes: Sequence[str]) -> int | None:
    """The rank whose keeper holds the copies of `rank`: one of the next node, in a circle; None on a single node.

    Args:
        rank: A rank.
        nodes: The node of each rank.
    """
    circle = list(dict.fromkeys(nodes))
    if len(circle) == 1:
        return None
    following = circle[(circle.index(nodes[rank]) + 1) % len(circle)]
    here = [other for other, node in enumerate(nodes) if node == nodes[rank]]
    there = [other for other, node in enumerate(nodes) if node == following]
    return there[here.index(rank) % len(there)]
