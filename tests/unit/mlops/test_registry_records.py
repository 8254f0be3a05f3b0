"""Who may hold an alias, and who held it before."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate
from production_ml.mlops.registry_records import (
    ModelReference,
    VersionInfo,
    history_after_promotion,
    history_after_rollback,
    parse_reference,
    read_verdict,
    why_not_promotable,
)

GATE = EvaluationGate([AtLeast("accuracy", 0.9)])


def version(*, content_hash="aaaa", subject="aaaa", accuracy=0.95, judged=True) -> VersionInfo:
    verdict = GATE.decide({"accuracy": accuracy}, None, subject=subject) if judged else None
    return VersionInfo(
        name="digits",
        version=1,
        content_hash=content_hash,
        verdict=verdict,
        run_id="r",
        artifact_path="p",
        registered_at="",
    )


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("digits", ModelReference(name="digits", alias="champion")),
        ("digits@challenger", ModelReference(name="digits", alias="challenger")),
        ("digits:12", ModelReference(name="digits", version=12)),
    ],
)
def test_a_reference_names_an_alias_or_a_version_and_the_champion_by_default(reference, expected):
    assert parse_reference(reference) == expected


@pytest.mark.parametrize("reference", ["", "digits@", "digits:", "digits:champion", "../digits", "a@b@c", "d'igits"])
def test_a_reference_of_another_form_is_refused(reference):
    with pytest.raises(ConfigError):
        parse_reference(reference)


def test_a_passing_verdict_about_this_content_is_what_it_takes():
    assert why_not_promotable(version()) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (version(judged=False), "no evaluation verdict"),
        (version(subject="bbbb"), "another package"),
        (version(accuracy=0.5), "observed 0.5"),
        (version(content_hash=""), "not registered by production_ml"),
    ],
)
def test_anything_less_is_refused_with_its_reason(candidate, reason):
    assert reason in (why_not_promotable(candidate) or "")


@pytest.mark.parametrize(
    ("history", "holder", "promoted", "expected"),
    [
        ((), None, 1, (1,)),
        ((1,), 1, 2, (1, 2)),
        ((1, 2), 2, 1, (1, 2, 1)),
        ((1, 2, 3), 2, 4, (1, 2, 4)),  # 3 was written, but the alias never moved
        ((1,), 7, 8, (1, 7, 8)),  # 7 got the alias elsewhere
        ((1, 2), None, 3, (3,)),  # the alias was deleted: whoever did that does not want them back
    ],
)
def test_a_promotion_remembers_who_held_the_alias(history, holder, promoted, expected):
    assert history_after_promotion(history, holder, promoted) == expected


@pytest.mark.parametrize(
    ("history", "holder", "expected"),
    [((1, 2, 3), 3, (1, 2)), ((1, 2, 1), 1, (1, 2)), ((1, 2, 3), 2, (1,)), ((1, 2), 9, (1, 2)), ((1,), 1, ())],
)
def test_a_rollback_goes_to_the_one_before_the_present_holder(history, holder, expected):
    assert history_after_rollback(history, holder) == expected


def test_a_verdict_that_cannot_be_read_is_no_verdict():
    assert read_verdict("{broken", of="digits version 1") is None
    assert read_verdict(None, of="digits version 1") is None
