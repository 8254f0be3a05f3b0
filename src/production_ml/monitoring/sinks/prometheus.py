"""Prometheus: the newest values of a run, as a collector that is asked at scrape time."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from production_ml.monitoring.rank_view import RankView
from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import MetricsRecord, SourcedRecord

_LABELS = ("job", "run", "rank", "node")
_RUN_LABELS = ("job", "run")


class PrometheusSink:
    """`train/loss` becomes `train_loss{job,run,rank,node}` and `train_loss_mean`, `_min`, `_max` over the ranks.

    A step is a value here (`training_step`), never a label: each would be a time series of its own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._view = RankView()
        self._events: dict[str, int] = {}
        self._records = 0
        self._last_step_wall = 0.0
        self._run_labels = ("", "")

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:
        self._run_labels = (f"{identity.project}/{identity.experiment}", identity.run_id)
        self.registry.register(self)

    def write(self, records: Sequence[SourcedRecord]) -> None:
        with self._lock:
            for sourced in records:
                self._records += 1
                record = sourced.record
                if isinstance(record, MetricsRecord):
                    self._view.update(sourced.source, record)
                    self._last_step_wall = max(self._last_step_wall, record.wall_seconds)
                else:
                    self._events[record.name] = self._events.get(record.name, 0) + 1

    def close(self) -> None:
        """Nothing is held: the last values stay scrapeable until the exporter ends."""

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first record (and the registry must not call `collect` to find out)."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees."""
        with self._lock:
            yield from self._about_the_run()
            yield from self._per_rank()
            yield from self._over_ranks()

    def _about_the_run(self) -> Iterable[Metric]:
        records = CounterMetricFamily("run_log_records", "Records read from the run log.", labels=_RUN_LABELS)
        records.add_metric(self._run_labels, self._records)
        yield records
        events = CounterMetricFamily("run_events", "Events in the run log.", labels=(*_RUN_LABELS, "event"))
        for name, count in self._events.items():
            events.add_metric((*self._run_labels, name), count)
        yield events
        if self._view.attempt < 0:
            return
        yield self._gauge("training_attempt", "Restarts of the workers so far.", self._view.attempt)
        yield self._gauge("training_last_step_timestamp_seconds", "When a step was last logged.", self._last_step_wall)

    def _gauge(self, name: str, documentation: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, documentation, labels=_RUN_LABELS)
        gauge.add_metric(self._run_labels, value)
        return gauge

    def _per_rank(self) -> Iterable[Metric]:
        step = GaugeMetricFamily("training_step", "The step a rank has reached.", labels=_LABELS[:3])
        for rank, reached in self._view.steps().items():
            step.add_metric((*self._run_labels, str(rank)), reached)
        yield step
        gauges: dict[str, GaugeMetricFamily] = {}
        for source, name, value in self._view.per_rank():
            exposed = metric_name(name)
            gauge = gauges.setdefault(exposed, GaugeMetricFamily(exposed, name, labels=_LABELS))
            gauge.add_metric((*self._run_labels, str(source.rank), source.node), value)
        yield from gauges.values()

    def _over_ranks(self) -> Iterable[Metric]:
        for name, aggregate in self._view.aggregates().items():
            exposed = metric_name(name)
            yield self._gauge(f"{exposed}_mean", f"{name}, mean over ranks", aggregate.mean)
            yield self._gauge(f"{exposed}_min", f"{name}, minimum over ranks", aggregate.minimum)
            yield self._gauge(f"{exposed}_max", f"{name}, maximum over ranks", aggregate.maximum)


def metric_name(name: str) -> str:
    """`train/loss` → `train_loss`: the characters that Prometheus allows in a metric name."""
    safe = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{safe}" if safe[:1].isdigit() else safe
