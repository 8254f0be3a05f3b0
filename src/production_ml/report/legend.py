"""What the colours and symbols of the charts mean, in HTML, which wraps where a chart's own legend cannot."""

from __future__ import annotations

from production_ml.report.charts import ATTEMPT_COLOURS, attempt_colour
from production_ml.report.markup import Markup, element
from production_ml.report.story import RunStory
from production_ml.report.time_axis import FAILURE_COLOUR
from production_ml.report.timeline import MARKS

_MOST_NAMED = 4


def metrics_legend(story: RunStory) -> Markup:
    """For the charts over steps; empty where there is nothing to tell apart."""
    items = _attempts(story) if len(story.attempts) > 1 else []
    if any(recovery.steps_redone for recovery in story.recoveries):
        items.append(_item("┈┈", "var(--muted)", "steps that a later attempt made again"))
    if any(series.ranks > 1 for by_attempt in story.series.values() for series in by_attempt.values()):
        items.append(_item("■", "var(--line)", "from the lowest to the highest rank; the line is their mean"))
    return _legend(items)


def timeline_legend(story: RunStory) -> Markup:
    """For the timeline: attempts, and the events that the run has."""
    seen = {event.name for _, event in story.log.events()}
    items = _attempts(story)
    items += [_item(mark.glyph, mark.colour, mark.label) for mark in MARKS if mark.event in seen]
    if story.failures:
        items.append(_item("┃", FAILURE_COLOUR, "failure, and the time until training went on"))
    return _legend(items)


def _attempts(story: RunStory) -> list[Markup]:
    """One item per colour: where there are more attempts than colours, each stands for several."""
    by_colour: dict[str, list[int]] = {}
    for attempt in story.attempts:
        by_colour.setdefault(attempt_colour(attempt.number), []).append(attempt.number)
    return [_item("■", colour, _attempt_names(numbers)) for colour, numbers in by_colour.items()]


def _attempt_names(numbers: list[int]) -> str:
    named = ", ".join(str(number) for number in numbers[:_MOST_NAMED])
    noun = "attempt" if len(numbers) == 1 else "attempts"
    return f"{noun} {named}" + (f" and every {len(ATTEMPT_COLOURS)}th" if len(numbers) > _MOST_NAMED else "")


def _item(glyph: str, colour: str, label: str) -> Markup:
    return element("li", element("span", glyph, style=f"color:{colour}", aria_hidden="true"), f" {label}")


def _legend(items: list[Markup]) -> Markup:
    return element("ul", *items, class_="legend") if items else Markup("")
