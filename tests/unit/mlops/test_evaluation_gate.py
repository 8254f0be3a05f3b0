"""The gate lets in what it should, and nothing by silence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from production_ml.core.errors import ConfigError
from production_ml.mlops.evaluation_gate import AtLeast, AtMost, EvaluationGate, NotWorseThanChampion, Verdict


class StoppedClock:
    def wall_seconds(self) -> float:
        return 1_700_000_000.0

    def monotonic_seconds(self) -> float:
        return 0.0


GATE = EvaluationGate([AtLeast("accuracy", 0.9), NotWorseThanChampion("accuracy")], clock=StoppedClock())


def decide(candidate, champion=None, gate=GATE) -> Verdict:
    return gate.decide(candidate, champion, subject="c0ffee", dataset="d1")


def test_a_better_candidate_passes_and_the_verdict_says_what_was_judged():
    verdict = decide({"accuracy": 0.97}, {"accuracy": 0.95})

    assert verdict.passed
    assert (verdict.subject, verdict.dataset) == ("c0ffee", "d1")
    assert verdict.decided_at == "2023-11-14T22:13:20.000Z"
    assert [(outcome.observed, outcome.required) for outcome in verdict.outcomes] == [(0.97, 0.9), (0.97, 0.95)]


def test_a_verdict_says_which_alias_it_was_decided_for_and_it_is_champion_unless_the_gate_says_otherwise():
    milder = EvaluationGate([AtLeast("accuracy", 0.5)], alias="challenger")

    assert decide({"accuracy": 0.97}).alias == "champion"
    assert decide({"accuracy": 0.6}, None, milder).alias == "challenger"


def test_a_candidate_below_the_bar_is_refused_with_the_reason():
    verdict = decide({"accuracy": 0.5})

    assert not verdict.passed
    assert verdict.reasons == ("accuracy at least 0.9: observed 0.5, required at least 0.9",)


def test_a_candidate_worse_than_the_champion_is_refused():
    assert not decide({"accuracy": 0.92}, {"accuracy": 0.95}).passed


def test_the_first_candidate_has_nobody_to_beat():
    verdict = decide({"accuracy": 0.92}, None)

    assert verdict.passed
    assert verdict.outcomes[1].reason == "no champion yet"


@pytest.mark.parametrize("champion", [None, {"accuracy": 0.1}])
@pytest.mark.parametrize("rule", [AtLeast("accuracy", 0.0), AtMost("accuracy", 1.0), NotWorseThanChampion("accuracy")])
def test_a_metric_that_is_not_a_number_never_passes(rule, champion):
    assert not decide({"accuracy": math.nan}, champion, EvaluationGate([rule])).passed


@pytest.mark.parametrize("rule", [AtLeast("accuracy", 0.0), AtMost("accuracy", 1.0), NotWorseThanChampion("accuracy")])
def test_a_metric_that_was_not_measured_never_passes(rule):
    verdict = decide({"loss": 0.1}, None, EvaluationGate([rule]))

    assert not verdict.passed
    assert "not measured" in verdict.reasons[0]


@pytest.mark.parametrize("champion", [{}, {"accuracy": math.nan}])
def test_a_champion_without_a_measure_lets_nobody_in(champion):
    assert not decide({"accuracy": 0.99}, champion).passed


@pytest.mark.parametrize(("accuracy", "passes"), [(0.94, True), (0.93, False)])
def test_the_tolerance_is_how_much_worse_a_candidate_may_be(accuracy, passes):
    gate = EvaluationGate([NotWorseThanChampion("accuracy", tolerance=0.0101)])

    assert decide({"accuracy": accuracy}, {"accuracy": 0.95}, gate).passed is passes


def test_for_a_loss_lower_is_better():
    gate = EvaluationGate([NotWorseThanChampion("loss", tolerance=0.1, higher_is_better=False), AtMost("loss", 1.0)])

    assert decide({"loss": 0.55}, {"loss": 0.5}, gate).passed
    assert not decide({"loss": 0.65}, {"loss": 0.5}, gate).passed
    assert not decide({"loss": 1.05}, {"loss": 2.0}, gate).passed


@pytest.mark.parametrize("metrics", [{"accuracy": 0.97}, {"accuracy": math.nan}, {"accuracy": math.inf}, {}])
def test_a_verdict_survives_json(metrics):
    gate = EvaluationGate([AtLeast("accuracy", 0.9)], alias="challenger")
    verdict = decide(metrics, {"accuracy": 0.9}, gate)

    read = Verdict.from_json(verdict.to_json())

    assert read.to_json() == verdict.to_json()
    assert (read.passed, read.alias) == (verdict.passed, "challenger")
    json.loads(verdict.to_json(), parse_constant=pytest.fail)


def test_numpy_metrics_are_judged_as_plain_numbers():
    verdict = decide({"accuracy": np.float32(0.95)})

    assert verdict.passed
    assert json.loads(verdict.to_json())["metrics"] == {"accuracy": pytest.approx(0.95)}


def test_a_verdict_that_was_turned_to_passed_by_hand_is_not_believed():
    text = decide({"accuracy": 0.5}).to_json().replace('"passed": false', '"passed": true', 1)

    with pytest.raises(ConfigError, match="altered"):
        Verdict.from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"passed": true}'])
def test_what_is_no_verdict_is_not_read_as_one(text):
    with pytest.raises(ConfigError, match="not a readable verdict"):
        Verdict.from_json(text)


@pytest.mark.parametrize("alias", [None, 7, "", "challenger/../champion"])
def test_a_verdict_that_does_not_say_for_which_alias_is_not_read_as_one(alias):
    stated = json.loads(decide({"accuracy": 0.97}).to_json())
    without = {key: value for key, value in stated.items() if key != "alias"}

    for text in (json.dumps(without), json.dumps({**stated, "alias": alias})):
        with pytest.raises(ConfigError, match="not a readable verdict"):
            Verdict.from_json(text)


def test_a_gate_for_what_cannot_be_an_alias_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match="alias"):
        EvaluationGate([AtLeast("accuracy", 0.9)], alias="the champion")


def test_a_gate_without_rules_cannot_be_built():
    with pytest.raises(ConfigError, match="every model"):
        EvaluationGate([])


@pytest.mark.parametrize(
    "build",
    [
        lambda: AtLeast("accuracy", math.nan),
        lambda: AtMost("loss", math.inf),
        lambda: NotWorseThanChampion("accuracy", tolerance=-0.1),
    ],
)
def test_a_rule_that_cannot_work_is_refused_when_it_is_built(build):
    with pytest.raises(ConfigError):
        build()
