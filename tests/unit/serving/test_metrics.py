"""Counts are right, and their labels stay few."""

from __future__ import annotations

import pytest

from production_ml.serving.metrics import QueueDepth, ServingMetrics


def value(metrics: ServingMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> ServingMetrics:
    return ServingMetrics(lambda: [QueueDepth("digits", "3", 7)])


def test_requests_batches_and_queues_are_counted_by_version(metrics):
    counters = metrics.of_version("digits", "3")
    counters.observe_request(200, 0.002)
    counters.observe_request(200, 0.002)
    counters.observe_request(400, 0.001)
    counters.observe_batch(5)

    assert value(metrics, "serving_requests_total", model="digits", version="3", code="200") == 2
    assert value(metrics, "serving_requests_total", model="digits", version="3", code="400") == 1
    assert value(metrics, "serving_request_duration_seconds_count", model="digits", version="3") == 3
    assert value(metrics, "serving_batch_rows_sum", model="digits", version="3") == 5
    assert value(metrics, "serving_queue_depth", model="digits", version="3") == 7


def test_what_reached_no_model_is_counted_without_one(metrics):
    metrics.count_refusal(404)

    assert value(metrics, "serving_requests_total", model="", version="", code="404") == 1


def test_a_year_of_swaps_does_not_leave_a_year_of_series(metrics):
    for version in map(str, range(100)):
        metrics.of_version("digits", version).observe_request(200, 0.001)
        metrics.retire("digits", version)

    assert metrics.exposition().count(b"serving_requests_total{") <= 10
    assert value(metrics, "serving_requests_total", model="digits", version="99", code="200") == 1


def test_a_version_that_came_back_is_kept(metrics):
    metrics.of_version("digits", "1").observe_request(200, 0.001)
    metrics.retire("digits", "1")
    metrics.of_version("digits", "1")
    for version in map(str, range(2, 30)):
        metrics.of_version("digits", version)
        metrics.retire("digits", version)

    assert value(metrics, "serving_requests_total", model="digits", version="1", code="200") == 1
