"""What Prometheus sees of the server; labels are the models and versions served, never what a client sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

_VERSION_LABELS: Final = ("model", "version")
_SECONDS_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# A scraper still wants the last counts of a version that was just swapped out, but not of each there ever was.
_RETIRED_KEPT: Final = 8


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many requests wait for a version."""

    model: str
    version: str
    waiting: int


class ServingMetrics:
    """Counts requests and batches in a registry of its own.

    Args:
        queue_depths: Asked at each scrape.
    """

    def __init__(self, queue_depths: Callable[[], Iterable[QueueDepth]]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "serving_requests",
            "Requests answered, by HTTP status; without a model where none was reached.",
            (*_VERSION_LABELS, "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "serving_request_duration_seconds",
            "From the request's headers to its answer.",
            _VERSION_LABELS,
            registry=self.registry,
            buckets=_SECONDS_BUCKETS,
        )
        self._rows = Histogram(
            "serving_batch_rows",
            "Rows in one batch.",
            _VERSION_LABELS,
            registry=self.registry,
            buckets=_ROWS_BUCKETS,
        )
        self._codes: dict[tuple[str, str], set[str]] = {}
        self._retired: deque[tuple[str, str]] = deque()
        self.registry.register(_QueueDepths(queue_depths))

    def count_refusal(self, code: int) -> None:
        """A request that reached no model."""
        self._requests.labels("", "", str(code)).inc()

    def of_version(self, model: str, version: str) -> VersionMetrics:
        """The counters of a version that is going to be served."""
        if (model, version) in self._retired:
            self._retired.remove((model, version))
        return VersionMetrics(self, model, version)

    def retire(self, model: str, version: str) -> None:
        """A version is served no more; its series are dropped when enough others have followed it."""
        self._retired.append((model, version))
        if len(self._retired) > _RETIRED_KEPT:
            oldest = self._retired.popleft()
            for code in self._codes.pop(oldest, ()):
                self._requests.remove(*oldest, code)
            self._seconds.remove(*oldest)
            self._rows.remove(*oldest)

    def exposition(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self.registry)

    def _counter(self, model: str, version: str, code: str) -> Counter:
        self._codes.setdefault((model, version), set()).add(code)
        return self._requests.labels(model, version, code)


class VersionMetrics:
    """One version's counters, looked up once: a lookup by labels takes as long as the count."""

    def __init__(self, metrics: ServingMetrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._model = model
        self._version = version
        self._seconds = metrics._seconds.labels(model, version)
        self._rows = metrics._rows.labels(model, version)
        self._requests: dict[int, Counter] = {}

    def observe_batch(self, rows: int) -> None:
        """A batch is about to run."""
        self._rows.observe(rows)

    def observe_request(self, code: int, seconds: float) -> None:
        """A request got its answer."""
        counter = self._requests.get(code)
        if counter is None:
            counter = self._requests[code] = self._metrics._counter(self._model, self._version, str(code))
        counter.inc()
        self._seconds.observe(seconds)


class _QueueDepths:
    def __init__(self, queue_depths: Callable[[], Iterable[QueueDepth]]) -> None:
        self._queue_depths = queue_depths

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily("serving_queue_depth", "Requests that wait for a version.", labels=_VERSION_LABELS)
        for depth in self._queue_depths():
            gauge.add_metric((depth.model, depth.version), depth.waiting)
        yield gauge
