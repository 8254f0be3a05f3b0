"""All ranks seen as one: the latest value of each metric per rank, and its mean, minimum and maximum over them."""

from __future__ import annotations

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


class RankView:
    """Feed it metrics records in time order; ask it what holds now."""

    def __init__(self) -> None:
        self._attempt = -1
        self._latest: dict[int, dict[str, float]] = {}
        self._sources: dict[int, Source] = {}
        self._steps: dict[int, int] = {}

    def update(self, source: Source, record: MetricsRecord) -> None:
        """Take a record; a new attempt puts the old one's ranks out of sight, a late record of an old one is ignored."""
        if source.attempt < self._attempt:
            return
        if source.attempt > self._attempt:
            self._attempt = source.attempt
            self._latest.clear()
            self._sources.clear()
            self._steps.clear()
        self._latest.setdefault(source.rank, {}).update(record.values)
        self._sources[source.rank] = source
        self._steps[source.rank] = record.step

    @property
    def attempt(self) -> int:
        """The newest attempt, -1 before the first record."""
        return self._attempt

    def steps(self) -> dict[int, int]:
        """Rank to the step it has reached."""
        return dict(self._steps)

    def per_rank(self) -> Iterator[tuple[Source, str, float]]:
        """Every metric of every rank, newest values."""
        for rank, values in sorted(self._latest.items()):
            for name, value in values.items():
                yield self._sources[rank], name, value

    def aggregates(self) -> dict[str, Aggregate]:
        """Every metric over the ranks that log it. A NaN on one rank makes the mean, minimum and maximum NaN: it shows."""
        gathered: dict[str, list[float]] = {}
        for _, name, value in self.per_rank():
            gathered.setdefault(name, []).append(value)
        return {name: _aggregate(values) for name, values in gathered.items()}


def _aggregate(values: list[float]) -> Aggregate:
    total = sum(values)
    if total != total:  # noqa: PLR0124 - only NaN differs from itself
        return Aggregate(total, total, total, len(values))
    return Aggregate(total / len(values), min(values), max(values), len(values))
