"""Each event is one line of JSON that names rank, attempt and step, whatever the application does to logging."""

from __future__ import annotations

import json
import logging
import logging.config
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from production_ml.core.structured_logging import (
    CONTEXT,
    LIBRARY_LOGGER,
    Event,
    JsonLog,
    json_safe,
    log_event,
    subscribe,
    unsubscribe,
)

logger = logging.getLogger("production_ml.test")


@pytest.fixture
def json_log(tmp_path: Path) -> Iterator[JsonLog]:
    log = JsonLog(tmp_path / "rank-00003.jsonl")
    subscribe(log.receive)
    LIBRARY_LOGGER.addHandler(log)
    CONTEXT.rank, CONTEXT.attempt, CONTEXT.step = 3, 1, 40
    yield log
    CONTEXT.rank, CONTEXT.attempt, CONTEXT.step = 0, 0, None
    LIBRARY_LOGGER.removeHandler(log)
    unsubscribe(log.receive)
    log.close()


@pytest.fixture
def received() -> Iterator[list[Event]]:
    """What a receiver that came before the test has got."""
    events: list[Event] = []
    subscribe(events.append)
    yield events
    unsubscribe(events.append)


def lines(tmp_path: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for line in (tmp_path / "rank-00003.jsonl").read_text().splitlines() if line.startswith("{")
    ]


def test_an_event_is_one_line_with_its_place_and_its_facts(json_log, tmp_path):
    log_event(logger, "checkpoint_saved", "saved in 0.2 s", path=Path("checkpoints/step-40"), size_bytes=12)

    (line,) = [line for line in lines(tmp_path) if line["event"] == "checkpoint_saved"]
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "checkpoint_saved",
        "message": "saved in 0.2 s",
        "rank": 3,
        "attempt": 1,
        "step": 40,
        "path": "checkpoints/step-40",
        "size_bytes": 12,
    }


def test_an_events_own_step_goes_before_the_processs(json_log, tmp_path):
    log_event(logger, "checkpoint_loaded", step=20)

    assert lines(tmp_path)[-1]["step"] == 20


def test_a_fact_cannot_forge_what_the_line_itself_says(json_log, tmp_path):
    log_event(logger, "checkpoint_loaded", time="yesterday", name="a fact may have any name", self="too")

    assert lines(tmp_path)[-1]["time"] != "yesterday"
    assert lines(tmp_path)[-1]["name"] == "a fact may have any name"


def test_a_plain_message_of_the_library_is_a_line_too_with_its_exception(json_log, tmp_path):
    try:
        int("boom")
    except ValueError:
        logger.exception("it failed: %s", "once")

    line = lines(tmp_path)[-1]
    assert (line["event"], line["level"], line["message"], line["rank"]) == ("log", "error", "it failed: once", 3)
    assert "ValueError: invalid literal" in str(line["exception"])


def test_an_event_gives_one_line_and_not_one_per_way_it_takes(json_log, tmp_path):
    log_event(logger, "only_once")

    assert [line["event"] for line in lines(tmp_path)].count("only_once") == 1


def test_an_application_that_silences_loggers_loses_no_event(received):
    level = LIBRARY_LOGGER.level
    LIBRARY_LOGGER.setLevel(logging.CRITICAL)
    logger.disabled = True  # what logging.config.dictConfig() does to loggers that it does not name
    try:
        log_event(logger, "checkpoint_saved", step=7)
    finally:
        LIBRARY_LOGGER.setLevel(level)
        logger.disabled = False

    assert [(event.name, event.fields) for event in received] == [("checkpoint_saved", {"step": 7})]


def test_events_before_the_first_receiver_are_kept_for_it_with_their_time():
    log_event(logger, "checkpoint_loaded", step=1)
    log_event(logger, "checkpoint_loaded", step=2)
    events: list[Event] = []

    subscribe(events.append)
    unsubscribe(events.append)

    assert [event.fields["step"] for event in events[-2:]] == [1, 2]
    assert events[-2].wall_seconds <= events[-1].wall_seconds


def test_people_get_events_through_pythons_logging(caplog):
    log_event(logger, "verdict_unreadable", "the verdict cannot be read", level=logging.WARNING)

    assert caplog.record_tuples == [("production_ml.test", logging.WARNING, "the verdict cannot be read")]


def test_a_line_cut_off_by_a_kill_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "rank-00003.jsonl"
    path.write_text('{"event": "whole"}\n{"event": "torn')

    log = JsonLog(path)
    log.receive(Event("next", logging.INFO, "", {}, 0.0))
    log.close()

    assert [json.loads(line)["event"] for line in path.read_text().splitlines() if "torn" not in line] == [
        "whole",
        "next",
    ]


def test_a_full_disk_costs_lines_that_closing_tells_once_and_never_an_exception(tmp_path, caplog, file_size_limit):
    log = JsonLog(tmp_path / "rank-00003.jsonl")
    with file_size_limit(1000):
        for number in range(50):
            log.receive(Event("event", logging.INFO, "", {"number": number}, 0.0))
    log.receive(Event("event", logging.INFO, "", {"number": 50}, 0.0))
    log.close()
    log.close()

    whole = [line for line in (tmp_path / "rank-00003.jsonl").read_text().splitlines() if line.endswith("}")]
    assert json.loads(whole[-1])["number"] == 50
    (message,) = caplog.messages
    assert f"rank-00003.jsonl: {51 - len(whole)} lines found no room" in message


def test_a_closed_log_takes_nothing_and_minds_nothing(tmp_path, caplog):
    log = JsonLog(tmp_path / "rank-00003.jsonl")
    log.close()
    log.close()

    log.receive(Event("late", logging.INFO, "", {}, 0.0))
    log.close()

    assert (tmp_path / "rank-00003.jsonl").read_text() == ""
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.int64(3), 3),
        (True, True),
        (None, None),
        (Decimal("0.10"), "0.10"),
        (Path("a/b"), "a/b"),
        ({1: (1, {2})}, {"1": [1, [2]]}),
    ],
)
def test_what_json_lacks_becomes_what_it_has(value, expected):
    safe = json_safe(value)

    assert safe == expected
    assert type(safe) is type(expected)
    json.dumps(safe, allow_nan=False)
