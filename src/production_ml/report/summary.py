"""The run in figures: what stands at the top of the report, and what `--json` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from production_ml.core.clock import iso_utc
from production_ml.core.structured_logging import json_safe
from production_ml.monitoring.recoveries import Recovery
from production_ml.report.outcome import Ending
from production_ml.report.series import SeriesByAttempt
from production_ml.report.story import RunStory
from production_ml.report.throughput import Throughput

_LOSS_NAMES = ("train/loss", "loss", "val/loss", "eval/loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFigures:
    """One metric in figures, means over the ranks; steps that were made again count as they were the last time."""

    name: str
    final: float
    """At the last step; NaN where it was not finite then."""
    lowest: float | None
    """Of the finite values; None where there are none."""
    lowest_step: int | None
    highest: float | None
    not_finite: int
    """How many of all logged values were NaN or infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The whole run in figures. Durations are seconds."""

    project: str
    experiment: str
    run_id: str
    outcome: str
    because: str
    started_at: str | None
    ended_at: str | None
    duration_seconds: float
    world_size: int
    attempts: int
    restarts: int
    steps: int
    """From the first step to the last, each counted once."""
    steps_redone: int
    recovery_seconds: float
    """From each failure until training went on, all together."""
    loss: MetricFigures | None
    throughput: float | None
    throughput_unit: str | None
    throughput_metric: str | None
    metrics: tuple[MetricFigures, ...]
    checkpoints_saved: int
    checkpoints_damaged: int
    alerts: int
    exceptions: int
    recoveries: tuple[Recovery, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN is the string "NaN"."""
        plain: dict[str, Any] = json_safe(asdict(self))
        for shown, recovery in zip(plain["recoveries"], self.recoveries, strict=True):
            shown["down_seconds"] = recovery.down_seconds
        return plain


def summarize(story: RunStory, ending: Ending, rate: Throughput | None) -> Summary:
    """Every figure from the log, none invented."""
    metrics = tuple(figures(name, by_attempt, story) for name, by_attempt in story.series.items())
    loss = loss_metric(story.series)
    events = [event.name for _, event in story.log.events()]
    identity = story.log.identity
    return Summary(
        project=identity.project,
        experiment=identity.experiment,
        run_id=identity.run_id,
        outcome=ending.outcome.value,
        because=ending.because,
        started_at=iso_utc(story.started_at) if story.log.records else None,
        ended_at=iso_utc(story.ended_at) if story.log.records else None,
        duration_seconds=story.ended_at - story.started_at,
        world_size=max((attempt.world_size for attempt in story.attempts), default=0),
        attempts=len(story.attempts),
        restarts=len(story.recoveries),
        steps=_steps(story),
        steps_redone=sum(recovery.steps_redone for recovery in story.recoveries),
        recovery_seconds=_recovery_seconds(story),
        loss=next((figure for figure in metrics if figure.name == loss), None),
        throughput=rate.typical if rate else None,
        throughput_unit=rate.unit if rate else None,
        throughput_metric=rate.metric if rate else None,
        metrics=metrics,
        checkpoints_saved=len(_saved_steps(story)),
        checkpoints_damaged=events.count("checkpoint_damaged"),
        alerts=events.count("alert"),
        exceptions=events.count("exception"),
        recoveries=story.recoveries,
    )


def figures(name: str, by_attempt: SeriesByAttempt, story: RunStory) -> MetricFigures:
    """One metric's figures over all attempts."""
    kept_steps: list[int] = []
    kept_means: list[float] = []
    for attempt, series in sorted(by_attempt.items()):
        kept = series.steps < story.superseded_from(attempt)
        kept_steps += series.steps[kept].tolist()
        kept_means += series.mean[kept].tolist()
    finite = [(mean, step) for mean, step in zip(kept_means, kept_steps, strict=True) if math.isfinite(mean)]
    lowest = min(finite, default=None)
    return MetricFigures(
        name=name,
        final=kept_means[int(np.argmax(kept_steps))] if kept_steps else math.nan,
        lowest=lowest[0] if lowest else None,
        lowest_step=lowest[1] if lowest else None,
        highest=max(finite)[0] if finite else None,
        not_finite=sum(series.not_finite for series in by_attempt.values()),
    )


def loss_metric(names: Iterable[str]) -> str | None:
    """The metric that is the loss: a well-known name, else the first that ends as one."""
    known = list(names)
    endings = [name for name in known if name.endswith(("/loss", "_loss"))]
    return next((name for name in (*_LOSS_NAMES, *endings) if name in known), None)


def _steps(story: RunStory) -> int:
    first = [attempt.first_step for attempt in story.attempts if attempt.first_step is not None]
    last = [attempt.last_step for attempt in story.attempts if attempt.last_step is not None]
    return max(last) - min(first) + 1 if first else 0


def _recovery_seconds(story: RunStory) -> float:
    """Overlaps count once: an attempt that failed before its first step belongs to the failure before it."""
    total, covered_until = 0.0, -math.inf
    for recovery in story.recoveries:
        back_at = story.back_at(recovery.failure)
        total += max(0.0, back_at - max(recovery.failure.failed_at, covered_until))
        covered_until = max(covered_until, back_at)
    return total


def _saved_steps(story: RunStory) -> set[tuple[int, int | None]]:
    return {(source.attempt, event.step) for source, event in story.log.events("checkpoint_saved")}
