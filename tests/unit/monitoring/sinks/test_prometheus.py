"""A scrape shows every rank, what they are over all ranks, and never a series twice."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from production_ml.monitoring.run_log import EventRecord, MetricsRecord, SourcedRecord
from production_ml.monitoring.sinks.prometheus import PrometheusSink, metric_name

RUN = {"job": "shop/exp-001", "run": "r1"}


@pytest.fixture
def sink(run):
    sink = PrometheusSink()
    sink.node = "h1"
    sink.open(run, run.identity())
    return sink


def metrics(source, values, *, step=0, at=1.0, **facts):
    return SourcedRecord(replace(source, **facts), MetricsRecord(step, at, values))


def value(sink, name, **labels):
    return sink.registry.get_sample_value(name, {**RUN, **labels})


def test_each_rank_and_what_all_ranks_are_together_can_be_asked_for(sink, source):
    sink.write(
        [metrics(source, {"train/loss": 1.0}, step=4, rank=0), metrics(source, {"train/loss": 3.0}, step=5, rank=1)]
    )

    assert value(sink, "train_loss", rank="1", node="h1") == 3.0
    assert [value(sink, f"train_loss_{over}") for over in ("mean", "min", "max")] == [2.0, 1.0, 3.0]
    assert value(sink, "training_step", rank="1") == 5


def test_restarts_events_and_the_last_step_are_told(sink, source):
    sink.write([SourcedRecord(source, EventRecord("checkpoint_saved", 0.5))] * 2)
    sink.write([metrics(source, {"loss": 1.0}, at=7.5, attempt=2)])

    assert value(sink, "run_events_total", event="checkpoint_saved") == 2
    assert value(sink, "training_attempt") == 2
    assert value(sink, "training_last_step_timestamp_seconds") == 7.5
    assert value(sink, "run_log_records_total") == 3


@pytest.mark.parametrize(("value_", "shown"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")])
def test_nan_and_infinities_are_written_as_prometheus_writes_them(sink, source, value_, shown):
    sink.write([metrics(source, {"loss": value_})])

    assert f'loss{{job="shop/exp-001",node="h1",rank="0",run="r1"}} {shown}' in _sorted_labels(sink)


def test_no_series_is_there_twice_even_if_two_metrics_come_to_one_name(sink, source):
    sink.write([metrics(source, {"train/loss": 1.0, "train_loss": 2.0, "train_loss_mean": 3.0, "training_step": 9.0})])

    for text, parse in (
        (generate_latest(sink.registry), text_string_to_metric_families),
        (generate_openmetrics(sink.registry), parse_openmetrics),
    ):
        samples = [sample for family in parse(text.decode()) for sample in family.samples]
        series = Counter((sample.name, frozenset(sample.labels.items())) for sample in samples)
        assert max(series.values()) == 1
    assert value(sink, "train_loss", rank="0", node="h1") == 1.0


def test_each_nodes_exporter_serves_its_own_ranks_and_rank_0s_the_whole(run, source):
    records = [metrics(source, {"loss": 1.0}, rank=0, node="h1"), metrics(source, {"loss": 3.0}, rank=1, node="h2")]
    scraped = {}
    for node in ("h1", "h2"):
        sink = PrometheusSink()
        sink.node = node
        sink.open(run, run.identity())
        sink.write(records)
        families = text_string_to_metric_families(generate_latest(sink.registry).decode())
        scraped[node] = {(s.name, s.labels.get("rank")): s.value for family in families for s in family.samples}

    assert scraped["h2"] == {("loss", "1"): 3.0, ("training_step", "1"): 0.0}
    assert scraped["h1"].keys() & scraped["h2"].keys() == set()
    assert scraped["h1"]["loss_mean", None] == 2.0


def test_before_the_first_record_a_scrape_works(sink):
    assert value(sink, "run_log_records_total") == 0


@pytest.mark.parametrize(
    ("name", "exposed"),
    [("train/loss", "train_loss"), ("eval top-5", "eval_top_5"), ("3d/iou", "_3d_iou"), ("", "_"), ("損失", "__")],
)
def test_any_name_becomes_one_that_prometheus_allows(name, exposed):
    assert metric_name(name) == exposed


def _sorted_labels(sink):
    lines = []
    for family in sink.collect():
        for sample in family.samples:
            labels = ",".join(f'{key}="{label}"' for key, label in sorted(sample.labels.items()))
            text = "NaN" if math.isnan(sample.value) else f"{sample.value:+}".replace("inf", "Inf")
            lines.append(f"{sample.name}{{{labels}}} {text}")
    return lines
