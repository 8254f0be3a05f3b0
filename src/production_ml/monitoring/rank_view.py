"""All ranks seen as one: the latest value of each metric per rank, and its mean, minimum and maximum over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from production_ml.monitoring.run_log import MetricsRecord, Source


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One metric over the ranks of the newest attempt."""

    mean: float
    minimum: float
    maximum: float
    ranks: int


@dataclass(slots=True)
class _Rank:
    source: Source
    step: int
    values: dict[str, float]


class RankView:
    """Feed it metrics records in time order; ask it what holds now."""

    def __init__(self) -> None:
        self._attempt = -1
        self._ranks: dict[int, _Rank] = {}

    def update(self, source: Source, record: MetricsRecord) -> None:
        """Take a record. A new attempt puts the old one's ranks out of sight; what comes late from it is ignored."""
        if source.attempt < self._attempt:
            return
        if source.attempt > self._attempt:
            self._attempt = source.attempt
            self._ranks.clear()
        rank = self._ranks.setdefault(source.rank, _Rank(source, record.step, {}))
        rank.source, rank.step = source, record.step
        rank.values.update(record.values)

    @property
    def attempt(self) -> int:
        """The newest attempt, -1 before the first record."""
        return self._attempt

    def node_of(self, rank: int) -> str | None:
        """Where a rank runs, None before its first record."""
        return self._ranks[rank].source.node if rank in self._ranks else None

    def steps(self) -> Iterator[tuple[Source, int]]:
        """Every rank, and the step it has reached."""
        for _, rank in sorted(self._ranks.items()):
            yield rank.source, rank.step

    def per_rank(self) -> Iterator[tuple[Source, str, float]]:
        """Every metric of every rank, newest values."""
        for _, rank in sorted(self._ranks.items()):
            for name, value in rank.values.items():
                yield rank.source, name, value

    def aggregates(self) -> dict[str, Aggregate]:
        """Every metric over the ranks that log it. A NaN on one rank makes mean, minimum and maximum NaN: it shows."""
        gathered: dict[str, list[float]] = {}
        for _, name, value in self.per_rank():
            gathered.setdefault(name, []).append(value)
        return {name: _aggregate(values) for name, values in gathered.items()}


def _aggregate(values: list[float]) -> Aggregate:
    if any(math.isnan(value) for value in values):
        return Aggregate(math.nan, math.nan, math.nan, len(values))
    return Aggregate(sum(values) / len(values), min(values), max(values), len(values))
