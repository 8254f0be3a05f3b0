"""The gate: rules look at a candidate's metrics and the champion's, and the verdict binds one package to one alias."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, TypeGuard

from production_ml.core.clock import SYSTEM_CLOCK, Clock, iso_utc
from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import json_safe
from production_ml.storage.names import check_name

Metrics = Mapping[str, float]
CHAMPION: Final = "champion"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleOutcome:
    """What one rule found."""

    rule: str
    """The rule as one reads it: `accuracy at least 0.9`."""
    passed: bool
    observed: float | None
    """The candidate's value; None where it was not measured."""
    required: float | None
    """The value that was the limit; None where there was nothing to compare with."""
    reason: str


class Rule(Protocol):
    """Rules add up: a candidate passes when every rule does, so a new rule can only ever refuse more."""

    def __call__(self, candidate: Metrics, champion: Metrics | None) -> RuleOutcome: ...


@dataclass(frozen=True, slots=True)
class AtLeast:
    """`metric` reaches `value`."""

    metric: str
    value: float

    def __post_init__(self) -> None:
        _check_finite("AtLeast.value", self.value)

    # ARG002: a rule is asked with both, whether it looks at the champion or not.
    def __call__(self, candidate: Metrics, champion: Metrics | None) -> RuleOutcome:  # noqa: ARG002
        return _compare(f"{self.metric} at least {self.value:g}", candidate.get(self.metric), self.value, sign=1)


@dataclass(frozen=True, slots=True)
class AtMost:
    """`metric` does not exceed `value`: for a loss, a latency, a size."""

    metric: str
    value: float

    def __post_init__(self) -> None:
        _check_finite("AtMost.value", self.value)

    # ARG002: a rule is asked with both, whether it looks at the champion or not.
    def __call__(self, candidate: Metrics, champion: Metrics | None) -> RuleOutcome:  # noqa: ARG002
        return _compare(f"{self.metric} at most {self.value:g}", candidate.get(self.metric), self.value, sign=-1)


@dataclass(frozen=True, slots=True)
class NotWorseThanChampion:
    """`metric` is not worse than the champion's by more than `tolerance`, both measured on the same data.

    The first candidate has nobody to beat and passes. A champion whose metric is missing or not a number is no
    measure, so the rule fails: silence must not let a candidate in.
    """

    metric: str
    tolerance: float = 0.0
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        _check_finite("NotWorseThanChampion.tolerance", self.tolerance)
        if self.tolerance < 0:
            problem = "must be 0 or more; to demand an improvement, add AtLeast or AtMost"
            raise ConfigError("NotWorseThanChampion.tolerance", self.tolerance, problem)

    def __call__(self, candidate: Metrics, champion: Metrics | None) -> RuleOutcome:
        rule = f"{self.metric} not worse than the champion's"
        if self.tolerance:
            rule += f" by more than {self.tolerance:g}"
        observed = candidate.get(self.metric)
        if not _is_number(observed):
            return _unmeasured(rule, observed, None)
        if champion is None:
            return _outcome(rule, True, observed, None, "no champion yet")
        best = champion.get(self.metric)
        if not _is_number(best):
            return _outcome(rule, False, observed, best, f"the champion's {self.metric} is not known")
        sign = 1 if self.higher_is_better else -1
        return _compare(rule, observed, best - sign * self.tolerance, sign=sign)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A decision whether one package may hold one alias, whole enough to be read years later."""

    subject: str
    """The content hash of the package that was judged; the verdict is worth nothing for any other."""
    alias: str
    """The alias that it was judged for; milder rules for a challenger say nothing about a champion."""
    outcomes: tuple[RuleOutcome, ...]
    metrics: Mapping[str, float]
    champion_metrics: Mapping[str, float] | None = None
    dataset: str = ""
    """The content hash of the data that the metrics were measured on."""
    decided_at: str

    def __post_init__(self) -> None:
        check_name("alias", self.alias)

    @property
    def passed(self) -> bool:
        """Whether every rule passed. Derived and never stored, so that it cannot say something else."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused, one line a rule; where it passed, why each rule did."""
        return tuple(
            f"{outcome.rule}: {outcome.reason}" for outcome in self.outcomes if self.passed or not outcome.passed
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a metric that is not finite becomes `"NaN"`, `"Infinity"` or `"-Infinity"`."""
        return {"passed": self.passed, **json_safe(asdict(self))}

    def to_json(self) -> str:
        """One JSON object, as `from_json` reads it."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: It is no verdict, does not say for which alias, or says `passed` where its rules say otherwise.
        """
        try:
            stated = json.loads(text)
            verdict = _parse(stated)
            agrees = stated["passed"] is verdict.passed
        except (ValueError, KeyError, TypeError) as problem:
            raise ConfigError("verdict", text[:80], f"is not a readable verdict ({problem!r})") from problem
        if not agrees:
            raise ConfigError("verdict", stated["passed"], "is not what the verdict's own rules say: it was altered")
        return verdict


class EvaluationGate:
    """Decides whether a candidate may hold an alias; it holds no state and touches nothing.

    Args:
        rules: All have to pass.
        alias: What its verdicts are about: the registry moves this alias on them, and no other.
        clock: Dates the verdicts.

    Raises:
        ConfigError: There is no rule: such a gate would let everything through. Or `alias` cannot be one.
    """

    def __init__(self, rules: Sequence[Rule], *, alias: str = CHAMPION, clock: Clock = SYSTEM_CLOCK) -> None:
        if not rules:
            raise ConfigError("rules", [], "a gate without a rule would let every model through")
        self.rules = tuple(rules)
        self.alias = check_name("alias", alias)
        self._clock = clock

    def decide(self, candidate: Metrics, champion: Metrics | None, *, subject: str, dataset: str = "") -> Verdict:
        """Judge the package whose content hash is `subject`.

        Args:
            candidate: Its metrics.
            champion: The present champion's metrics on the same data; None where there is no champion.
            subject: `ModelPackage.content_hash`.
            dataset: `DatasetVersion.content_hash` of the evaluation data.
        """
        measured = _numbers(candidate)
        to_beat = None if champion is None else _numbers(champion)
        return Verdict(
            subject=subject,
            alias=self.alias,
            outcomes=tuple(rule(measured, to_beat) for rule in self.rules),
            metrics=measured,
            champion_metrics=to_beat,
            dataset=dataset,
            decided_at=iso_utc(self._clock.wall_seconds()),
        )


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def _compare(rule: str, observed: float | None, required: float, *, sign: int) -> RuleOutcome:
    """Whether `observed` lies on the right side: not below `required` for sign 1, not above it for -1."""
    if not _is_number(observed):
        return _unmeasured(rule, observed, required)
    passed = observed >= required if sign > 0 else observed <= required
    relation = "at least" if sign > 0 else "at most"
    return _outcome(rule, passed, observed, required, f"observed {observed:.6g}, required {relation} {required:.6g}")


def _unmeasured(rule: str, observed: float | None, required: float | None) -> RuleOutcome:
    reason = "was not measured" if observed is None else "is not a number, and what is not a number never passes"
    return _outcome(rule, False, observed, required, reason)


def _outcome(rule: str, passed: bool, observed: float | None, required: float | None, reason: str) -> RuleOutcome:
    return RuleOutcome(rule=rule, passed=passed, observed=observed, required=required, reason=reason)


def _check_finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(field, value, "must be a finite number")


def _parse(stated: Mapping[str, Any]) -> Verdict:
    champion = stated["champion_metrics"]
    return Verdict(
        subject=stated["subject"],
        alias=stated["alias"],
        outcomes=tuple(_parse_outcome(outcome) for outcome in stated["outcomes"]),
        metrics=_numbers(stated["metrics"]),
        champion_metrics=None if champion is None else _numbers(champion),
        dataset=stated["dataset"],
        decided_at=stated["decided_at"],
    )


def _parse_outcome(stated: Mapping[str, Any]) -> RuleOutcome:
    numbers = {key: None if stated[key] is None else float(stated[key]) for key in ("observed", "required")}
    return RuleOutcome(rule=stated["rule"], passed=stated["passed"] is True, reason=stated["reason"], **numbers)


def _numbers(stated: Mapping[str, Any]) -> dict[str, float]:
    """Plain floats, from numpy's, from a tensor of one element, or from `"NaN"`."""
    return {name: float(value) for name, value in stated.items()}
