"""JSON lines that any tool can read, with NaN as text and no line half written."""

from __future__ import annotations

import json
import math
import resource

import pytest

from production_ml.monitoring.run_log import EventRecord, MetricsRecord, SourcedRecord
from production_ml.monitoring.sinks.jsonl import JsonLinesSink, line


def test_metrics_are_one_line_with_who_and_when(source):
    shown = json.loads(line(SourcedRecord(source, MetricsRecord(3, 1_767_268_800.0, {"loss": 0.5, "nan": math.nan}))))

    assert shown == {
        "time": "2026-01-01T12:00:00.000Z",
        "step": 3,
        "role": "rank",
        "rank": 0,
        "attempt": 0,
        "node": "h1",
        "metrics": {"loss": 0.5, "nan": "NaN"},
    }


def test_the_facts_of_an_event_do_not_hide_who_wrote_it(source):
    shown = json.loads(line(SourcedRecord(source, EventRecord("worker_failed", 0.0, None, "error", "", {"rank": 7}))))

    assert (shown["rank"], shown["fields"], shown["event"]) == (0, {"rank": 7}, "worker_failed")


def test_a_batch_that_found_no_room_is_whole_and_single_when_it_is_given_again(run, source):
    sink = JsonLinesSink()
    sink.open(run, run.identity())
    batches = [[SourcedRecord(source, MetricsRecord(step, 0.0, {"loss": 1.0}))] * 3 for step in range(2)]
    sink.write(batches[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics_jsonl.stat().st_size + 50, hard))
    try:
        with pytest.raises(OSError, match="found room"):
            sink.write(batches[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.write(batches[1])
    sink.close()

    assert [json.loads(text)["step"] for text in run.metrics_jsonl.read_text().splitlines()] == [0, 0, 0, 1, 1, 1]
