"""Brings together what the launchers of all nodes know of a hang, through the store in which they met."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from torch.distributed import Store  # type: ignore[attr-defined] # exported by a star import

from production_ml.fault_tolerance.launcher.hang.culprit import RankReport

_ANSWER_SECONDS: Final = 5.0
"""Another node may be asked in the midst of its own look, and answers its ranks' questions first."""
_LOOK_SECONDS: Final = 0.05


class OtherNodes(Protocol):
    """The launchers of the other nodes."""

    def is_asked(self) -> bool:
        """Whether another node suspects a hang, and this one has not answered yet."""
        ...

    def exchange(self, own: Sequence[RankReport]) -> list[RankReport]:
        """What all nodes that answer know, this one included."""
        ...


class NoOtherNodes:
    """For a job of one node."""

    def is_asked(self) -> bool:
        return False

    def exchange(self, own: Sequence[RankReport]) -> list[RankReport]:
        return list(own)


class NodesInStore:
    """Rounds of question and answer in a store; whoever suspects first opens the round.

    Args:
        store: Of this attempt.
        node: This node's place among the nodes.
        node_count: How many there are.
        wait: Sleeps; true if the watch is to end meanwhile.
    """

    def __init__(self, store: Store, *, node: int, node_count: int, wait: Callable[[float], bool]) -> None:
        # A connection of its own: the agent may be waiting in the other one.
        self._store = store.clone()  # type: ignore[attr-defined] # not in torch's stubs
        self._node = node
        self._node_count = node_count
        self._wait = wait
        self._round = 0

    def is_asked(self) -> bool:
        return bool(self._store.check([self._key("asked")]))

    def exchange(self, own: Sequence[RankReport]) -> list[RankReport]:
        self._store.set(self._key("asked"), "")
        self._store.set(self._key(self._node), json.dumps([report.as_json() for report in own]))
        keys = [self._key(node) for node in range(self._node_count)]
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline and not self._store.check(keys):
            if self._wait(_LOOK_SECONDS):
                break
        reports = [
            RankReport.of_json(facts)
            for key in keys
            if self._store.check([key])
            for facts in json.loads(self._store.get(key))
        ]
        self._round += 1
        return reports

    def _key(self, what: str | int) -> str:
        return f"hang/{self._round}/{what}"
