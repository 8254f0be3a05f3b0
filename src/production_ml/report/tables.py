"""The report's tables: failures and recoveries, checkpoints, events, configuration, environment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from production_ml.monitoring.recoveries import Failure, Recovery
from production_ml.monitoring.run_log import EventRecord, Source
from production_ml.report import numbers
from production_ml.report.markup import Cell, Markup, element, facts, join, table
from production_ml.report.story import (
    LONGEST_NAME,
    RunStory,
    failed_worker,
    failure_name,
    number_field,
    row_name,
    shortened,
)

MOST_ROWS = 500
_LONGEST_MESSAGE = 500
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LONG_FACTS = {"traceback": "Traceback", "stderr_tail": "Last lines of its stderr"}
_ENVIRONMENT = ("command", "host", "cpus", "python", "torch")


def failures_table(story: RunStory) -> Markup:
    """Who failed, what it cost, and how training came back."""
    if not story.failures:
        return _nothing("No failure in this run.")
    headers = ["#", "Worker", "Cause", "At", "Detected after", "Down", "Resumed from step", "Steps redone", "Said"]
    rows = [_failure_row(number, failure, story) for number, failure in enumerate(story.failures, start=1)]
    return table(headers, rows, numeric=("#", *headers[3:8]), short=("Worker", "Cause"))


def checkpoints_table(story: RunStory) -> Markup:
    """One row for each save of a step, over its ranks."""
    saves = list(_saves(story))
    if not saves:
        return _nothing("No checkpoint was saved.")
    headers = ["Step", "Attempt", "At", "Took", "Stall", "Size", "Path"]
    note = _cut_note(len(saves), "checkpoints", "the newest")
    return join([note, table(headers, saves[-MOST_ROWS:], numeric=headers[:-1])])


def events_table(story: RunStory) -> Markup:
    """What happened, in order; of very many events the warnings and errors before the others."""
    found = list(story.log.events())
    if not found:
        return _nothing("No event was logged.")
    headers = ["At", "Level", "Event", "Who", "Step", "Message"]
    rows = [_event_row(source, event, story) for source, event in choose_events(found, MOST_ROWS)]
    note = _cut_note(len(found), "events", "warnings and errors before others, newest before older")
    return join(
        [_damage_note(story), note, table(headers, rows, numeric=("At", "Step"), short=("Level", "Event", "Who"))]
    )


def choose_events(found: list[tuple[Source, EventRecord]], limit: int) -> list[tuple[Source, EventRecord]]:
    """At most `limit` events in their order: those that someone has to know of first, then the newest."""
    newest_first = range(len(found) - 1, -1, -1)
    urgent = [index for index in newest_first if found[index][1].level not in ("debug", "info")]
    others = [index for index in newest_first if found[index][1].level in ("debug", "info")]
    return [found[index] for index in sorted([*urgent, *others][:limit])]


def configuration(story: RunStory) -> Markup:
    """The configuration that the monitor was given, nested names joined by dots."""
    config = _start_fields(story).get("config")
    rows = list(_flat(config)) if isinstance(config, Mapping) else []
    return facts(rows) if rows else _nothing("No configuration was recorded: give the monitor one with config=.")


def environment(story: RunStory) -> Markup:
    """Where and how the run was started."""
    if not story.log.records:
        return _nothing("Nothing was recorded.")
    recorded = _start_fields(story)
    nodes = sorted({source.node for source in story.sources})
    sizes = [attempt.world_size for attempt in story.attempts]
    rows = [(name, _shown(recorded[name])) for name in _ENVIRONMENT if recorded.get(name) is not None]
    rows += [("nodes", ", ".join(nodes)), ("world size", " → ".join(str(size) for size in dict.fromkeys(sizes)))]
    return facts([*rows, ("run directory", str(story.log.run.path))])


def _failure_row(number: int, failure: Failure, story: RunStory) -> list[Cell]:
    recovery = story.recovery_from(failure)
    detected = None if failure.detected_at is None else failure.detected_at - failure.failed_at
    cells: list[Cell] = [
        str(number),
        failed_worker(failure),
        element("strong", failure_name(failure), class_="bad"),
        _after(failure.failed_at, story),
        numbers.seconds(detected),
    ]
    if recovery is None:
        return [*cells, "not recovered", numbers.UNKNOWN, numbers.UNKNOWN, failure.reason]
    down = "no step made" if recovery.recovered_at is None else numbers.seconds(recovery.down_seconds)
    return [*cells, down, _resumed_from(recovery), numbers.count(recovery.steps_redone), failure.reason]


def _resumed_from(recovery: Recovery) -> str:
    """The checkpoint that was loaded; where none was logged, the first step tells where training went on."""
    if recovery.resumed_from_step is not None:
        return numbers.count(recovery.resumed_from_step)
    if recovery.first_step_after is None:
        return numbers.UNKNOWN
    return f"{numbers.count(recovery.first_step_after)} (no load logged)"


def _saves(story: RunStory) -> Iterator[list[Cell]]:
    by_step: dict[tuple[int, int | None], list[EventRecord]] = {}
    for source, event in story.log.events("checkpoint_saved"):
        by_step.setdefault((source.attempt, event.step), []).append(event)
    for (attempt, step), events in by_step.items():
        took, stalled, size = (_largest(events, name) for name in ("duration_seconds", "stall_seconds", "size_bytes"))
        yield [
            numbers.count(step),
            str(attempt),
            _after(events[-1].wall_seconds, story),
            numbers.seconds(took),
            numbers.seconds(stalled),
            numbers.size(size),
            str(events[-1].fields.get("path") or ""),
        ]


def _largest(events: list[EventRecord], name: str) -> float | None:
    """Over the ranks that report one save: it took as long as its slowest rank."""
    found = (number_field(event, name) for event in events)
    return max((number for number in found if number is not None), default=None)


def _event_row(source: Source, event: EventRecord, story: RunStory) -> list[Cell]:
    level = event.level if event.level in _LEVELS else "info"
    badge = element("span", shortened(event.level, LONGEST_NAME), class_=f"level {level}")
    name = shortened(event.name, LONGEST_NAME)
    step = numbers.count(event.step)
    who = row_name(source.role, source.rank)
    return [_after(event.wall_seconds, story), badge, name, who, step, _message(event)]


def _message(event: EventRecord) -> Markup:
    title = str(event.fields.get("title") or "")
    said = [text for text in (title, event.message) if text and text != event.name]
    text = ": ".join(said) or ", ".join(f"{name} {_shown(fact)}" for name, fact in _facts(event))
    parts: list[str] = [shortened(text, _LONGEST_MESSAGE)]
    parts += [_long_text(label, event.fields[name]) for name, label in _LONG_FACTS.items() if event.fields.get(name)]
    return join(parts)


def _long_text(label: str, fact: Any) -> Markup:
    lines = fact if isinstance(fact, list) else [fact]
    return element("details", element("summary", label), element("pre", "\n".join(str(line) for line in lines)))


def _facts(event: EventRecord) -> Iterator[tuple[str, Any]]:
    for name, fact in event.fields.items():
        if fact is not None and name != "config" and name not in _LONG_FACTS:
            yield name, fact


def _start_fields(story: RunStory) -> Mapping[str, Any]:
    for _, event in story.log.events():
        if event.name in ("run_started", "run_restarted"):
            return event.fields
    return {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, setting in config.items():
        if isinstance(setting, Mapping) and setting:
            yield from _flat(setting, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _shown(setting)


def _shown(fact: Any) -> str:
    if isinstance(fact, str):
        return fact
    if isinstance(fact, list) and all(isinstance(item, str) for item in fact):
        return " ".join(fact)
    return json.dumps(fact)


def _after(wall_seconds: float, story: RunStory) -> Markup:
    """The time since the start; the clock's time shows on hovering."""
    return element("span", numbers.seconds(wall_seconds - story.started_at), title=numbers.moment(wall_seconds))


def _damage_note(story: RunStory) -> Markup:
    damages = [str(damage) for damage in story.log.damages]
    if not damages:
        return Markup("")
    told = element("summary", f"{numbers.plural(len(damages), 'part')} of the run log cannot be read and is left out.")
    return element("details", told, *(element("p", damage) for damage in damages[:MOST_ROWS]), class_="bad")


def _cut_note(total: int, what: str, which: str) -> Markup:
    if total <= MOST_ROWS:
        return Markup("")
    return element("p", f"{MOST_ROWS} of {total:,} {what} are shown: {which}.", class_="note")


def _nothing(text: str) -> Markup:
    return element("p", text, class_="empty")
