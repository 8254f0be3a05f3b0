"""Rank 0's view: the newest value of every metric on every rank, and what they are over all ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from production_ml.monitoring.rank_view import Aggregate, RankView
from production_ml.monitoring.run_log import MetricsRecord


@pytest.fixture
def rank(source):
    return lambda number, attempt=0: replace(source, rank=number, attempt=attempt, world_size=2)


def test_metrics_of_all_ranks_become_one(rank):
    view = RankView()
    view.update(rank(0), MetricsRecord(4, 1.0, {"train/loss": 1.0, "lr": 0.1}))
    view.update(rank(1), MetricsRecord(5, 2.0, {"train/loss": 3.0}))

    assert view.aggregates() == {
        "train/loss": Aggregate(mean=2.0, minimum=1.0, maximum=3.0, ranks=2),
        "lr": Aggregate(mean=0.1, minimum=0.1, maximum=0.1, ranks=1),
    }
    assert [(source.rank, step) for source, step in view.steps()] == [(0, 4), (1, 5)]


def test_the_newest_value_holds_and_a_metric_that_is_logged_rarely_stays(rank):
    view = RankView()
    view.update(rank(0), MetricsRecord(0, 1.0, {"loss": 3.0, "eval/accuracy": 0.9}))
    view.update(rank(0), MetricsRecord(1, 2.0, {"loss": 2.0}))

    assert {name: value for _, name, value in view.per_rank()} == {"loss": 2.0, "eval/accuracy": 0.9}


def test_a_step_that_goes_back_is_where_the_rank_is(rank):
    view = RankView()
    view.update(rank(0), MetricsRecord(100, 1.0, {"loss": 1.0}))
    view.update(rank(0), MetricsRecord(60, 2.0, {"loss": 2.0}))

    assert [step for _, step in view.steps()] == [60]


def test_a_restart_puts_the_old_attempts_ranks_out_of_sight_and_late_records_too(rank):
    view = RankView()
    view.update(rank(0), MetricsRecord(9, 1.0, {"loss": 1.0}))
    view.update(rank(1), MetricsRecord(9, 1.0, {"loss": 1.0}))
    view.update(rank(0, attempt=1), MetricsRecord(5, 3.0, {"loss": 2.0}))
    view.update(rank(1), MetricsRecord(10, 2.0, {"loss": 9.0}))

    assert view.attempt == 1
    assert view.aggregates() == {"loss": Aggregate(2.0, 2.0, 2.0, 1)}


def test_nan_on_one_rank_shows_and_infinities_are_kept(rank):
    view = RankView()
    view.update(rank(0), MetricsRecord(0, 1.0, {"nan": math.nan, "mixed": math.inf, "inf": math.inf}))
    view.update(rank(1), MetricsRecord(0, 1.0, {"nan": 1.0, "mixed": -math.inf, "inf": 1.0}))

    over = view.aggregates()
    assert all(math.isnan(value) for value in (over["nan"].mean, over["nan"].minimum, over["nan"].maximum))
    assert (over["mixed"].minimum, over["mixed"].maximum) == (-math.inf, math.inf)
    assert math.isnan(over["mixed"].mean)
    assert (over["inf"].mean, over["inf"].minimum) == (math.inf, 1.0)


def test_before_the_first_record_nothing_is_known():
    view = RankView()

    assert (view.attempt, view.aggregates(), view.node_of(0)) == (-1, {}, None)
