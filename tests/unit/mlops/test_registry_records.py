"""Who may hold an alias, and who held it before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from production_ml.core.errors import ConfigError
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate, Verdict
from production_ml.mlops.registry_records import (
    ModelReference,
    VersionInfo,
    history_after_promotion,
    history_after_rollback,
    parse_reference,
    read_verdict,
    why_not_promotable,
)


def verdict(alias="champion", accuracy=0.95, subject="aaaa") -> Verdict:
    return EvaluationGate([AtLeast("accuracy", 0.9)], alias=alias).decide({"accuracy": accuracy}, None, subject=subject)


def version(*verdicts: Verdict, content_hash="aaaa") -> VersionInfo:
    return VersionInfo(
        name="digits",
        version=1,
        content_hash=content_hash,
        verdicts={verdict.alias: verdict for verdict in verdicts},
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
    assert why_not_promotable(version(verdict()), "champion") is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (version(), "no evaluation verdict"),
        (version(verdict(subject="bbbb")), "another package"),
        (version(verdict(accuracy=0.5)), "observed 0.5"),
        (version(verdict("challenger")), "its verdict was decided for challenger, not for champion"),
        (version(verdict("challenger"), verdict("canary")), "verdicts were decided for canary and challenger, not for"),
        (version(verdict("challenger"), verdict("champion", 0.5)), "observed 0.5"),
        (version(verdict(), content_hash=""), "not registered by production_ml"),
    ],
)
def test_anything_less_is_refused_with_its_reason(candidate, reason):
    assert reason in (why_not_promotable(candidate, "champion") or "")


def test_each_alias_is_opened_by_its_own_verdict_alone():
    judged_twice = version(verdict("challenger"), verdict("champion", 0.5))

    assert why_not_promotable(judged_twice, "challenger") is None
    assert why_not_promotable(judged_twice, "champion") is not None


def test_a_verdict_under_another_alias_is_believed_for_what_it_says_itself():
    forged = replace(version(), verdicts={"champion": verdict("challenger")})

    assert why_not_promotable(forged, "champion") == "its verdict was decided for challenger, not for champion"


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
