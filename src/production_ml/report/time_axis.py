"""The axis of time since the start, and the failures on it, the same in every chart that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from production_ml.monitoring.recoveries import Failure
from production_ml.report.story import RunStory

FAILURE_COLOUR = "#ef4444"
_DOWN_COLOUR = "rgba(239,68,68,0.16)"
_FIVE_MINUTES, _THREE_HOURS = 300, 3 * 3600
_ROOM_AT_THE_END = 1.01


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Wall seconds as the unit that a run of that length reads best in."""

    started_at: float
    duration_seconds: float
    unit: str
    unit_seconds: float

    @classmethod
    def of(cls, story: RunStory) -> TimeAxis:
        """The axis over the whole run."""
        # A run of one record still needs an axis that is longer than nothing.
        duration = max(story.ended_at - story.started_at, 1e-3)
        unit, unit_seconds = _unit(duration)
        return cls(story.started_at, duration, unit, unit_seconds)

    def at(self, wall_seconds: float) -> float:
        """Where a moment lies."""
        return self.length(wall_seconds - self.started_at)

    def length(self, duration_seconds: float) -> float:
        """How long a duration is."""
        return round(duration_seconds / self.unit_seconds, 5)

    def layout(self) -> dict[str, Any]:
        """The axis for plotly."""
        return {
            "title": {"text": f"{self.unit} since start"},
            "range": [0, self.length(self.duration_seconds * _ROOM_AT_THE_END)],
        }


def failure_shapes(story: RunStory, axis: TimeAxis) -> list[dict[str, Any]]:
    """A red line for each failure, and a red shade until training went on."""
    return [shape for failure in story.failures for shape in _shapes(failure, story, axis)]


def _shapes(failure: Failure, story: RunStory, axis: TimeAxis) -> list[dict[str, Any]]:
    at = axis.at(failure.failed_at)
    tall = {"x0": at, "y0": 0, "y1": 1, "yref": "paper"}
    shapes = [{**tall, "type": "line", "x1": at, "line": {"color": FAILURE_COLOUR, "width": 2}}]
    if story.recovery_from(failure) is not None:
        back_at = axis.at(story.back_at(failure))
        look = {"fillcolor": _DOWN_COLOUR, "line": {"width": 0}, "layer": "below"}
        shapes.append({**tall, "type": "rect", "x1": back_at, **look})
    return shapes


def _unit(duration_seconds: float) -> tuple[str, float]:
    if duration_seconds < _FIVE_MINUTES:
        return "seconds", 1.0
    return ("minutes", 60.0) if duration_seconds < _THREE_HOURS else ("hours", 3600.0)
