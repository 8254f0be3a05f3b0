"""The run on one time axis: attempts per process, failures, recoveries, checkpoints and alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from production_ml.monitoring.recoveries import Failure
from production_ml.monitoring.run_log import EventRecord
from production_ml.report import numbers
from production_ml.report.charts import Figure, attempt_colour, chart_text
from production_ml.report.downsampling import thin
from production_ml.report.story import RunStory, failed_worker, failure_name, row_name, shortened
from production_ml.report.time_axis import FAILURE_COLOUR, TimeAxis, failure_shapes

_MOST_RANKS = 32
_MOST_MARKERS = 400
_LONGEST_TEXT = 120
_MOST_NAMED_FAILURES = 3
# Labels stand on several levels, so that failures close to each other do not write over each other.
_LABEL_LEVELS = 3
_NAME_PIXELS, _NUMBER_PIXELS = 36, 16


@dataclass(frozen=True, slots=True)
class Mark:
    """How one kind of event is drawn."""

    event: str
    label: str
    symbol: str
    """plotly's name of it."""
    glyph: str
    """The same in text, for the legend."""
    colour: str
    size: int = 10


MARKS = (
    Mark("checkpoint_saved", "checkpoint saved", "diamond", "◆", "#22a55b", 8),
    Mark("checkpoint_loaded", "checkpoint loaded", "triangle-right", "▶", "#0ea5e9", 12),
    Mark("checkpoint_damaged", "checkpoint damaged", "x", "✖", FAILURE_COLOUR),
    Mark("checkpoint_save_failed", "save failed", "x-open", "✕", FAILURE_COLOUR),
    Mark("alert", "alert", "triangle-up", "▲", "#f59e0b", 12),
    Mark("exception", "exception", "star", "★", FAILURE_COLOUR, 12),
)


def timeline(story: RunStory) -> Figure:
    """One row per process: bars for attempts, symbols for events, red lines for failures with the time until back."""
    axis = TimeAxis.of(story)
    rows = timeline_rows(story)
    room_for_labels = _label_pixels(story) * min(len(story.failures), _LABEL_LEVELS)
    layout = {
        "height": 70 + 32 * len(rows) + room_for_labels,
        "margin": {"l": 64, "r": 12, "t": 12 + room_for_labels, "b": 44},
        "barmode": "overlay",
        "hovermode": "closest",
        "showlegend": False,  # the page has one
        "xaxis": axis.layout(),
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": rows[::-1], "automargin": True},
        "shapes": failure_shapes(story, axis),
        "annotations": _failure_labels(story, axis),
    }
    return {"data": [*_attempt_bars(story, rows, axis), *_marks(story, rows, axis)], "layout": layout}


def timeline_rows(story: RunStory) -> list[str]:
    """The launcher, then the ranks; of very many ranks those that failed and the first ones."""
    sources = story.sources
    ranks = sorted({source.rank for source in sources if source.role == "rank"})
    failed = [failure.rank for failure in story.failures if failure.rank is not None]
    kept = sorted({*failed[:_MOST_RANKS], *ranks[: max(0, _MOST_RANKS - len(failed))]}) if ranks else []
    others = sorted({source.role for source in sources if source.role != "rank"})
    return [*others, *(f"rank {rank}" for rank in kept)]


def _attempt_bars(story: RunStory, rows: list[str], axis: TimeAxis) -> list[dict[str, Any]]:
    spans: dict[tuple[str, int, int], list[float]] = {}
    for sourced in story.log.records:
        source, at = sourced.source, sourced.record.wall_seconds
        spans.setdefault((source.role, source.rank, source.attempt), [at, at])[1] = at
    by_attempt: dict[int | None, list[tuple[str, float, float]]] = {}
    for (role, rank, attempt), (begin, end) in spans.items():
        row = row_name(role, rank)
        if row in rows:
            by_attempt.setdefault(attempt if role == "rank" else None, []).append((row, begin, end))
    return [_bars(attempt, found, axis) for attempt, found in sorted(by_attempt.items(), key=_launcher_first)]


def _launcher_first(item: tuple[int | None, Any]) -> int:
    return -1 if item[0] is None else item[0]


def _bars(attempt: int | None, spans: list[tuple[str, float, float]], axis: TimeAxis) -> dict[str, Any]:
    name = "launcher" if attempt is None else f"attempt {attempt}"
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [row for row, _, _ in spans],
        "base": [axis.at(begin) for _, begin, _ in spans],
        "x": [axis.length(end - begin) for _, begin, end in spans],
        "width": 0.22 if attempt is None else 0.55,
        "marker": {"color": "rgba(128,128,128,0.5)" if attempt is None else attempt_colour(attempt, 0.55)},
        "text": [
            f"{row}, {name}<br>{numbers.moment(begin)} to {numbers.moment(end)}<br>{numbers.seconds(end - begin)}"
            for row, begin, end in spans
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }


def _marks(story: RunStory, rows: list[str], axis: TimeAxis) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[str, EventRecord]]] = {mark.event: [] for mark in MARKS}
    for source, event in story.log.events():
        row = row_name(source.role, source.rank)
        if event.name in found and row in rows:
            found[event.name].append((row, event))
    return [_mark_trace(mark, found[mark.event], story, axis) for mark in MARKS if found[mark.event]]


def _mark_trace(mark: Mark, found: list[tuple[str, EventRecord]], story: RunStory, axis: TimeAxis) -> dict[str, Any]:
    shown = thin(found, _MOST_MARKERS)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": mark.label,
        "x": [axis.at(event.wall_seconds) for _, event in shown],
        "y": [row for row, _ in shown],
        "marker": {
            "symbol": mark.symbol,
            "color": mark.colour,
            "size": mark.size,
            "line": {"width": 1, "color": "white"},
        },
        "text": [_mark_text(mark, event, event.wall_seconds - story.started_at) for _, event in shown],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _mark_text(mark: Mark, event: EventRecord, after_seconds: float) -> str:
    step = "" if event.step is None else f", step {event.step:,}"
    title = event.fields.get("title") or ""
    said = [str(text) for text in (title, event.message) if text and text != event.name]
    told = "<br>".join(chart_text(shortened(text, _LONGEST_TEXT)) for text in said)
    return f"{mark.label}{step}<br>{numbers.seconds(after_seconds)} after the start" + (f"<br>{told}" if told else "")


def _failure_labels(story: RunStory, axis: TimeAxis) -> list[dict[str, Any]]:
    """Few failures carry their names; many carry their numbers in the table below."""
    middle = (story.started_at + story.ended_at) / 2
    return [
        {
            "x": axis.at(failure.failed_at),
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": _label_pixels(story) * (index % _LABEL_LEVELS),
            "xanchor": "left" if failure.failed_at < middle else "right",
            "showarrow": False,
            "text": _failure_label(failure, story) if _are_named(story) else f"#{index + 1}",
            "align": "left" if failure.failed_at < middle else "right",
            "font": {"color": FAILURE_COLOUR, "size": 12},
        }
        for index, failure in enumerate(story.failures)
    ]


def _are_named(story: RunStory) -> bool:
    return len(story.failures) <= _MOST_NAMED_FAILURES


def _label_pixels(story: RunStory) -> int:
    return _NAME_PIXELS if _are_named(story) else _NUMBER_PIXELS


def _failure_label(failure: Failure, story: RunStory) -> str:
    """Two short lines rather than a long one, for the sake of phones."""
    recovery = story.recovery_from(failure)
    if recovery is None or recovery.recovered_at is None:
        back = "not recovered"
    else:
        back = f"back in {numbers.seconds(recovery.down_seconds)}"
    return f"<b>{chart_text(failure_name(failure))}</b>, {failed_worker(failure)}<br>{back}"
