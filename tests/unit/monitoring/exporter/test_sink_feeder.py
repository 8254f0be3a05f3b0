"""A sink gets every record once it can take it, and its troubles stay its own."""

from __future__ import annotations

import threading

import pytest

from production_ml.monitoring.exporter.sink_feeder import SinkFeeder
from production_ml.monitoring.run_log import MetricsRecord, RunLogWriter
from production_ml.testing.sinks import RecordingSink

STEPS = 50


@pytest.fixture
def over():
    return threading.Event()


@pytest.fixture
def logged_run(run, source):
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source)
    for step in range(STEPS):
        writer.metrics(step, ("loss",), (1.0,))
    writer.close()
    return run


def feeder(sink, run, over):
    return SinkFeeder("toy", sink, run, over, poll_seconds=0.001, retry_seconds=0.001)


def steps(sink):
    return [sourced.record.step for sourced in sink.records if isinstance(sourced.record, MetricsRecord)]


def test_a_run_that_is_over_is_fed_to_its_end_and_then_the_sink_is_closed(logged_run, over):
    sink = RecordingSink()
    over.set()
    feeder(sink, logged_run, over).run()

    assert steps(sink) == list(range(STEPS))
    assert sink.closed.is_set()
    assert sink.identity == logged_run.identity()


def test_a_sink_that_fails_gets_the_same_records_again_and_none_twice(logged_run, over, caplog):
    sink = RecordingSink(open_failures=3, write_failures=6)
    thread = feeder(sink, logged_run, over)
    over.set()
    thread.run()

    assert steps(sink) == list(range(STEPS))
    assert thread.failures == 9
    assert [message for message in caplog.messages if "service" in message] == caplog.messages
    assert len(caplog.messages) == 4  # the 1st, 2nd, 4th and 8th: an outage of weeks must not fill the disk


def test_records_that_come_later_are_fed_too(run, source, over):
    sink = RecordingSink()
    thread = feeder(sink, run, over)
    thread.start()
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source)
    for step in range(STEPS):
        writer.metrics(step, ("loss",), (1.0,))
    writer.close()
    over.set()
    thread.join(timeout=30)

    assert steps(sink) == list(range(STEPS))


def test_a_sink_that_hangs_holds_up_no_other(logged_run, over):
    release = threading.Event()

    class Hanging(RecordingSink):
        def write(self, records):
            release.wait(30)
            super().write(records)

    hanging, other = Hanging(), RecordingSink()
    threads = [feeder(sink, logged_run, over) for sink in (hanging, other)]
    for thread in threads:
        thread.start()
    over.set()
    other_closed = other.closed.wait(30)
    meanwhile = list(hanging.records)
    release.set()
    for thread in threads:
        thread.join(timeout=30)

    assert other_closed
    assert meanwhile == []
    assert steps(hanging) == steps(other) == list(range(STEPS))


def test_a_sink_that_fails_to_close_ends_its_thread_all_the_same(logged_run, over, caplog):
    class Stubborn(RecordingSink):
        def close(self):
            raise ConnectionError("not now")

    over.set()
    feeder(Stubborn(), logged_run, over).run()

    assert "not now" in caplog.text
