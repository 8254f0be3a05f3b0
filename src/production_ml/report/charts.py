"""Metric and throughput charts as plain plotly figures; the page adds the colours of text and grid, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from production_ml.report import numbers
from production_ml.report.downsampling import Floats, Indices, downsample
from production_ml.report.series import Series, SeriesByAttempt
from production_ml.report.story import RunStory
from production_ml.report.throughput import RateCurve, Throughput
from production_ml.report.time_axis import TimeAxis, failure_shapes

Figure = dict[str, Any]

POINTS_PER_SERIES = 2000
# Chosen to read on white and on near-black alike; red is kept for failures.
ATTEMPT_COLOURS = ("59,130,246", "217,119,6", "13,148,136", "139,92,246", "219,39,119")
_ALL_POINTS = 200_000
_FEWEST_POINTS = 50
_FEWEST_PER_STRETCH = 5
_MARKERS_UP_TO = 40


def points_per_series(metrics: int) -> int:
    """How many points a chart may have, so that a page of very many charts still opens."""
    return max(10 * _FEWEST_POINTS, min(POINTS_PER_SERIES, _ALL_POINTS // max(1, metrics)))


def attempt_colour(attempt: int, opacity: float = 1.0) -> str:
    """The colour of an attempt, in all charts the same."""
    return f"rgba({ATTEMPT_COLOURS[attempt % len(ATTEMPT_COLOURS)]},{opacity:g})"


def metric_chart(by_attempt: SeriesByAttempt, story: RunStory, points: int = POINTS_PER_SERIES) -> Figure:
    """A metric over steps: per attempt the mean over the ranks, with a band from the lowest to the highest.

    Steps that a later attempt made again are drawn faint and dotted. NaN is a gap.
    """
    total = sum(len(series.steps) for series in by_attempt.values())
    traces: list[dict[str, Any]] = []
    for attempt, series in sorted(by_attempt.items()):
        share = max(_FEWEST_POINTS, points * len(series.steps) // total)
        traces += _attempt_traces(attempt, series, story.superseded_from(attempt), share)
    return {"data": traces, "layout": _layout({"title": {"text": "step"}})}


def throughput_chart(rate: Throughput, story: RunStory) -> Figure:
    """The rate over the time since the run's start, with the failures that it shows."""
    axis = TimeAxis.of(story)
    share = max(_FEWEST_POINTS, POINTS_PER_SERIES // len(rate.curves))
    traces = [_rate_trace(attempt, curve, axis, share) for attempt, curve in sorted(rate.curves.items())]
    layout = _layout(axis.layout()) | {"shapes": failure_shapes(story, axis)}
    layout["yaxis"] |= {"title": {"text": chart_text(rate.unit)}, "rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def chart_text(text: str) -> str:
    """User text for a chart: plotly reads a little HTML in labels, and this is to be read as it is."""
    return html.escape(text, quote=False)


def _attempt_traces(attempt: int, series: Series, superseded_from: float, points: int) -> list[dict[str, Any]]:
    shown = downsample(series.mean, points)
    kept = int(np.searchsorted(series.steps[shown], superseded_from))
    traces = [_band(attempt, series, superseded_from, points)] if series.ranks > 1 else []
    if kept > 0:
        traces.append(_line(attempt, series, shown[:kept]))
    if kept < len(shown):
        # From the last step that counts on, so that the line does not break there.
        traces.append(_line(attempt, series, shown[max(0, kept - 1) :], redone=True))
    return traces


def _line(attempt: int, series: Series, shown: Indices, *, redone: bool = False) -> dict[str, Any]:
    spread = " (%{customdata[0]} to %{customdata[1]})" if series.ranks > 1 else ""
    name = f"attempt {attempt}, redone later" if redone else f"attempt {attempt}"
    line = {"color": attempt_colour(attempt), "width": 1.5 if redone else 2, "dash": "dot" if redone else "solid"}
    trace = {
        "type": "scatter",
        "name": name,
        "mode": "lines" if redone and len(shown) > 1 else _mode(shown),
        "x": series.steps[shown].tolist(),
        "y": _short(series.mean[shown]),
        "line": line,
        "marker": {"size": 5},
        "opacity": 0.5 if redone else 1,
        "hovertemplate": f"%{{y:.4g}}{spread}<extra>{name}</extra>",
    }
    if series.ranks > 1:
        bounds = zip(series.lowest[shown].tolist(), series.highest[shown].tolist(), strict=True)
        trace["customdata"] = [[numbers.value(low), numbers.value(high)] for low, high in bounds]
    return trace


def _band(attempt: int, series: Series, superseded_from: float, points: int) -> dict[str, Any]:
    """One closed shape per stretch without a gap; its two edges are thinned out apart, so no rank's spike is lost."""
    x: list[float | None] = []
    y: list[float | None] = []
    whole = np.isfinite(series.mean) & (series.steps < superseded_from)
    for begin, end in _longest_stretches(whole, points // _FEWEST_PER_STRETCH):
        share = max(_FEWEST_PER_STRETCH, points * (end - begin) // len(series.mean))
        upper = begin + downsample(series.highest[begin:end], share)
        lower = begin + downsample(series.lowest[begin:end], share)[::-1]
        if x:
            x.append(None)
            y.append(None)
        x += series.steps[upper].tolist() + series.steps[lower].tolist()
        y += _short(series.highest[upper]) + _short(series.lowest[lower])
    colour = attempt_colour(attempt, 0.16)
    look = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": colour, "hoverinfo": "skip"}
    return {"type": "scatter", "name": f"attempt {attempt}, all ranks", "x": x, "y": y, **look}


def _longest_stretches(holds: npt.NDArray[np.bool_], limit: int) -> list[tuple[int, int]]:
    """Where `holds` holds without a break, in order; of very many stretches the longest `limit`."""
    edges = np.flatnonzero(np.diff(holds.astype(np.int8), prepend=0, append=0)).tolist()
    stretches = zip(edges[::2], edges[1::2], strict=True)
    return sorted(sorted(stretches, key=lambda stretch: stretch[0] - stretch[1])[:limit])


def _rate_trace(attempt: int, curve: RateCurve, axis: TimeAxis, points: int) -> dict[str, Any]:
    shown = downsample(curve.rate, points)
    return {
        "type": "scatter",
        "name": f"attempt {attempt}",
        "mode": _mode(shown),
        "x": [axis.at(wall_seconds) for wall_seconds in curve.wall_seconds[shown].tolist()],
        "y": _short(curve.rate[shown]),
        "line": {"color": attempt_colour(attempt), "width": 2},
        "marker": {"size": 5},
        "hovertemplate": f"%{{y:.4g}}<extra>attempt {attempt}</extra>",
    }


def _mode(shown: Indices) -> str:
    return "lines+markers" if len(shown) <= _MARKERS_UP_TO else "lines"


def _short(values: Floats) -> list[float | None]:
    """Six digits are more than a screen shows, and a third of the bytes; what is not finite is a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _layout(xaxis: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "height": 280,
        "margin": {"l": 64, "r": 12, "t": 12, "b": 44},
        "showlegend": False,  # the page has one for all charts
        "hovermode": "x unified",
        "xaxis": dict(xaxis),
        "yaxis": {"exponentformat": "e", "automargin": True},
    }
