"""A record is one line that a person can read."""

from __future__ import annotations

import math

import pytest

from production_ml.cli.monitor import text
from production_ml.monitoring.run_log import EventRecord, MetricsRecord, Source, SourcedRecord

NOON = 1_767_268_800.0


def by(role: str = "rank", *, rank: int = 1, attempt: int = 0) -> Source:
    return Source(
        role=role,
        rank=rank,
        world_size=2,
        attempt=attempt,
        node="h1",
        pid=1,
        owner_pid=1,
        owner_start=1,
        started_at=NOON,
    )


@pytest.mark.parametrize(
    ("sourced", "line"),
    [
        (
            SourcedRecord(by(), MetricsRecord(7, NOON, {"train/loss": 0.123456789, "bad": math.nan})),
            "12:00:00.000Z rank 1 step 7  train/loss=0.123457  bad=nan",
        ),
        (
            SourcedRecord(by(attempt=2), EventRecord("alert", NOON, 7, "error", "look", {"title": "loss exploded"})),
            "12:00:00.000Z rank 1 attempt 2 step 7  ERROR alert: look  title=loss exploded",
        ),
        (
            SourcedRecord(by("launcher"), EventRecord("launch_finished", NOON, fields={"outcome": "succeeded"})),
            "12:00:00.000Z launcher  launch_finished  outcome=succeeded",
        ),
        (
            SourcedRecord(by(), EventRecord("exception", NOON, 3, "error", "ValueError: x", {"traceback": "a\nb\nc"})),
            "12:00:00.000Z rank 1 step 3  ERROR exception: ValueError: x",
        ),
    ],
)
def test_a_record_says_when_who_where_and_what(sourced, line):
    assert text(sourced) == line
