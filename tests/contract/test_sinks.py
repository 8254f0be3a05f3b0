"""What every kind of metric sink must do. A new kind adds one line to `SHOWN`: how to read back what it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import EventRecord, MetricsRecord, RunLog, SourcedRecord
from production_ml.monitoring.sinks import SINKS, Sink
from production_ml.monitoring.sinks.prometheus import PrometheusSink, metric_name
from production_ml.testing.synthetic_run import SyntheticRun

NODE = "synthetic-node"
NAMES = ("train/loss", "lr", "odd name-1")


def shown_by_prometheus(sink: Sink, run: RunDirectory) -> dict[tuple[int, str], float]:
    assert isinstance(sink, PrometheusSink)
    exposed = {metric_name(name): name for name in NAMES}
    return {
        (int(sample.labels["rank"]), exposed[sample.name]): sample.value
        for family in sink.collect()
        for sample in family.samples
        if sample.name in exposed
    }


def shown_by_jsonl(sink: Sink, run: RunDirectory) -> dict[tuple[int, str], float]:
    shown = {}
    for text in run.metrics_jsonl.read_text().splitlines():
        line = json.loads(text)
        shown |= {(line["rank"], name): float(value) for name, value in line.get("metrics", {}).items()}
    return shown


SHOWN: dict[str, Callable[[Sink, RunDirectory], dict[tuple[int, str], float]]] = {
    "prometheus": shown_by_prometheus,
    "jsonl": shown_by_jsonl,
}


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    """Two ranks, two attempts, steps that go back, events, odd names and values that are no finite numbers."""
    with SyntheticRun(tmp_path / "run", node=NODE) as run:
        run.event(0.0, "run_started", config={"lr": 0.1})
        for step in range(5):
            for rank in range(2):
                run.metrics(1.0 + step, step, {"train/loss": 5.0 - step, "lr": 0.1}, rank=rank)
        run.launcher_event(9.0, "worker_failed", rank=1, signal="SIGKILL")
        for rank in range(2):
            run.metrics(10.0, 3, {"train/loss": 0.25 + rank, "odd name-1": math.inf}, rank=rank, attempt=1)
        run.metrics(11.0, 4, {"train/loss": math.nan, "lr": -math.inf}, rank=0, attempt=1)
    return RunLog.open(tmp_path / "run")


NEWEST = {
    (0, "train/loss"): math.nan,
    (0, "lr"): -math.inf,
    (0, "odd name-1"): math.inf,
    (1, "train/loss"): 1.25,
    (1, "odd name-1"): math.inf,
}


@pytest.fixture(params=SINKS.names())
def kind(request: pytest.FixtureRequest) -> str:
    if request.param not in SHOWN:
        pytest.fail(f"say in SHOWN how to read back what the sink {request.param!r} shows")
    return str(request.param)


def opened(kind: str, log: RunLog) -> Sink:
    sink = SINKS.load(kind)()
    if isinstance(sink, PrometheusSink):
        sink.node = NODE
    sink.open(log.run, log.identity)
    return sink


def assert_shows_newest(kind: str, sink: Sink, log: RunLog) -> None:
    shown = SHOWN[kind](sink, log.run)
    for series, value in NEWEST.items():
        assert shown[series] == value or (math.isnan(value) and math.isnan(shown[series])), series


def test_the_newest_value_of_every_metric_and_rank_is_shown(kind, log):
    sink = opened(kind, log)
    sink.write(log.records)

    assert_shows_newest(kind, sink, log)
    sink.close()


@pytest.mark.parametrize("size", [1, 4])
def test_it_does_not_matter_in_which_pieces_the_records_come(kind, log, size):
    sink = opened(kind, log)
    for begin in range(0, len(log.records), size):
        sink.write(log.records[begin : begin + size])

    assert_shows_newest(kind, sink, log)
    sink.close()


def test_records_that_are_given_again_do_no_harm(kind, log):
    sink = opened(kind, log)
    sink.write(log.records[:5])
    sink.write(log.records[:5])
    sink.write(log.records)

    assert_shows_newest(kind, sink, log)
    sink.close()


def test_a_new_exporter_begins_anew_from_the_log_and_shows_the_same(kind, log):
    former = opened(kind, log)
    former.write(log.records[:7])
    former.close()

    sink = opened(kind, log)
    sink.write(log.records)

    assert_shows_newest(kind, sink, log)
    sink.close()


def test_events_with_any_facts_are_taken(kind, log):
    source = log.records[0].source
    facts = {"rank": "seven", "step": [1], "nested": {"a": None}, "event": "x", "損失": math.nan}
    odd: Sequence[SourcedRecord] = [
        SourcedRecord(source, EventRecord("odd", 0.0, None, "error", "two\nlines", facts)),
        SourcedRecord(replace(source, role="launcher", rank=0), EventRecord("", 0.0)),
        SourcedRecord(source, MetricsRecord(-5, 0.0, {})),
    ]

    sink = opened(kind, log)
    sink.write(odd)
    sink.write([])
    sink.close()


def test_a_run_without_any_record_can_be_opened_and_closed(kind, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    identity = RunIdentity(project="p", experiment="e", run_id="r")

    sink = SINKS.load(kind)()
    sink.open(run, identity)
    sink.close()


def test_closing_what_was_never_opened_is_nothing(kind):
    SINKS.load(kind)().close()


def test_a_third_partys_kind_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "their_sink.py").write_text("from production_ml.testing.sinks import RecordingSink as TheirSink\n")
    info = tmp_path / "their_sink-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[production_ml.sinks]\ntheirs = their_sink:TheirSink\n")
    monkeypatch.syspath_prepend(tmp_path)

    SINKS.check("theirs")

    assert "theirs" in SINKS.names()
    assert SINKS.load("theirs").__name__ == "RecordingSink"
