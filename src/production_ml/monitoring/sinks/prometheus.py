"""Prometheus: the newest values of a run, as a collector that is asked at scrape time."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from production_ml.monitoring.rank_view import RankView
from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import MetricsRecord, SourcedRecord

_RUN_LABELS = ("job", "run")


class PrometheusSink:
    """`train/loss` becomes `train_loss{job,run,rank,node}` and `train_loss_mean`, `_min`, `_max` over the ranks.

    A step is a value here (`training_step`), never a label: each would be a time series of its own. On several nodes,
    each exporter serves its own node's ranks, and the one beside rank 0 serves what is about the run as a whole, so
    that no series is there twice. Scrape with `honor_labels: true`: `job` is the project and the experiment.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.node = socket.gethostname()
        self._lock = threading.Lock()
        self._view = RankView()
        self._events: dict[str, int] = {}
        self._records = 0
        self._last_step_wall = 0.0
        self._run_labels = {"job": "", "run": ""}

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:  # noqa: ARG002 - the Protocol's
        self._run_labels = {"job": f"{identity.project}/{identity.experiment}", "run": identity.run_id}
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
            gauges = _Gauges()
            self._add_ranks(gauges)
            counters: list[Metric] = []
            if self._view.node_of(0) in (None, self.node):
                counters = self._counters()
                self._add_run(gauges)
            return [*counters, *gauges.families()]

    def _counters(self) -> list[Metric]:
        run = tuple(self._run_labels.values())
        records = CounterMetricFamily("run_log_records", "Records read from the run log.", labels=_RUN_LABELS)
        records.add_metric(run, self._records)
        events = CounterMetricFamily("run_events", "Events in the run log.", labels=(*_RUN_LABELS, "event"))
        for name, count in self._events.items():
            events.add_metric((*run, name), count)
        return [records, events]

    def _add_ranks(self, gauges: _Gauges) -> None:
        for source, step in self._view.steps():
            if source.node == self.node:
                rank = {**self._run_labels, "rank": str(source.rank)}
                gauges.add("training_step", "The step a rank has reached.", rank, step)
        for source, name, value in self._view.per_rank():
            if source.node == self.node:
                labels = {**self._run_labels, "rank": str(source.rank), "node": source.node}
                gauges.add(metric_name(name), name, labels, value)

    def _add_run(self, gauges: _Gauges) -> None:
        if self._view.attempt < 0:
            return
        run = self._run_labels
        gauges.add("training_attempt", "Restarts of the workers so far.", run, self._view.attempt)
        gauges.add("training_last_step_timestamp_seconds", "When a step was last logged.", run, self._last_step_wall)
        for name, over_ranks in self._view.aggregates().items():
            exposed = metric_name(name)
            gauges.add(f"{exposed}_mean", f"{name}, mean over ranks", run, over_ranks.mean)
            gauges.add(f"{exposed}_min", f"{name}, minimum over ranks", run, over_ranks.minimum)
            gauges.add(f"{exposed}_max", f"{name}, maximum over ranks", run, over_ranks.maximum)


class _Gauges:
    """Gauges by name; of two metrics that come to the same name and labels the first one stays.

    Prometheus would refuse one of `train/loss` and `train_loss` in every scrape, and which one is not said.
    """

    def __init__(self) -> None:
        self._families: dict[str, GaugeMetricFamily] = {}
        self._seen: set[tuple[str, ...]] = set()

    def add(self, name: str, documentation: str, labels: dict[str, str], value: float) -> None:
        series = (name, *labels.values())
        if series in self._seen:
            return
        self._seen.add(series)
        family = self._families.setdefault(name, GaugeMetricFamily(name, documentation))
        family.add_sample(name, labels, value)

    def families(self) -> Iterable[Metric]:
        return self._families.values()


def metric_name(name: str) -> str:
    """`train/loss` → `train_loss`: the characters that Prometheus allows in a metric name."""
    safe = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return safe if safe and not safe[0].isdigit() else f"_{safe}"
