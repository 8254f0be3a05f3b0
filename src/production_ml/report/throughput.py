"""How fast training went: a rate that was logged, else steps per second from the times of rank 0's steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from production_ml.report.downsampling import Floats
from production_ml.report.series import Series
from production_ml.report.story import RunStory

_RATE_NAMES = ("samples_per_second", "examples_per_second", "tokens_per_second", "steps_per_second", "throughput")
_WINDOWS = 100


@dataclass(frozen=True, slots=True, eq=False)
class RateCurve:
    """One attempt's rate over time; both arrays are [points]."""

    wall_seconds: Floats
    rate: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Throughput:
    """How fast, over all attempts."""

    unit: str
    """`samples/s`, `steps/s`, ..."""
    metric: str | None
    """The logged metric that says it; None where it was derived from the times of steps."""
    typical: float
    """The median of what was logged, or all steps made over the time they took, failures not counted."""
    curves: Mapping[int, RateCurve]


def throughput(story: RunStory) -> Throughput | None:
    """The run's throughput; None where nothing tells it."""
    metric = rate_metric(story.series)
    if metric is not None:
        return _logged(metric, story.series[metric])
    return _derived(story)


def rate_metric(names: Iterable[str]) -> str | None:
    """The metric that is a rate of training: `train/samples_per_second` goes before `steps_per_second`."""
    known = list(names)
    for rate in _RATE_NAMES:
        for name in (f"train/{rate}", rate):
            if name in known:
                return name
        for name in known:
            if name.startswith("train/") and name.endswith(f"/{rate}"):
                return name
    return None


def _logged(metric: str, by_attempt: Mapping[int, Series]) -> Throughput | None:
    values = np.concatenate([series.mean for series in by_attempt.values()])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    what = metric.rsplit("/", 1)[-1].removesuffix("_per_second")
    curves = {attempt: RateCurve(series.wall_seconds, series.mean) for attempt, series in by_attempt.items()}
    unit = "units/s" if what == "throughput" else f"{what}/s"
    return Throughput(unit=unit, metric=metric, typical=float(np.median(values)), curves=curves)


def _derived(story: RunStory) -> Throughput | None:
    curves: dict[int, RateCurve] = {}
    steps_made, seconds_taken = 0, 0.0
    for attempt, (steps, times) in _times_of_steps(story).items():
        if len(steps) < 2 or times[-1] <= times[0]:
            continue
        curves[attempt] = _rate(steps, times)
        steps_made += int(steps[-1] - steps[0])
        seconds_taken += float(times[-1] - times[0])
    if not curves or steps_made <= 0:
        return None
    return Throughput(unit="steps/s", metric=None, typical=steps_made / seconds_taken, curves=curves)


def _times_of_steps(story: RunStory) -> dict[int, tuple[Floats, Floats]]:
    """Per attempt, the steps that rank 0 logged and when it first did, both ascending."""
    seen: dict[int, dict[int, float]] = {}
    for source, record in story.log.metrics():
        if source.rank == 0:
            seen.setdefault(source.attempt, {}).setdefault(record.step, record.wall_seconds)
    found: dict[int, tuple[Floats, Floats]] = {}
    for attempt, times in seen.items():
        steps = np.array(list(times), dtype=np.float64)
        order = np.argsort(steps)
        # A metric on an axis of its own (an epoch number, say) would make time go back; only what goes on counts.
        walls = np.array(list(times.values()), dtype=np.float64)[order]
        forward = walls >= np.maximum.accumulate(walls)
        found[attempt] = (steps[order][forward], walls[forward])
    return found


def _rate(steps: Floats, times: Floats) -> RateCurve:
    """Steps per second between marks that lie evenly among the steps: single steps are too noisy to read."""
    marks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _WINDOWS + 1)).astype(np.int64))
    spent = np.diff(times[marks])
    with np.errstate(divide="ignore"):
        rate = np.where(spent > 0, np.diff(steps[marks]) / spent, np.nan)
    return RateCurve(times[marks][1:], rate)
