"""Rules are checked by the real Great Expectations, and a table passes only when all of it does."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from production_ml.core.errors import ConfigError
from production_ml.mlops.data_validation import DataValidator, parse_rules


@pytest.fixture
def digits() -> pd.DataFrame:
    pixels = {f"pixel_{number}": np.arange(100) % 17 for number in range(4)}
    return pd.DataFrame({**pixels, "label": np.arange(100) % 10, "id": [f"d{number}" for number in range(100)]})


RULES = [
    {"column": "label", "in_set": list(range(10))},
    {"columns": "pixel_*", "between": [0, 16]},
    {"not_null": "*"},
    {"unique": "id"},
    {"column": "id", "matches": "^d[0-9]+$"},
    {"rows": {"at_least": 100}},
    {"column_count": 6},
]


def failures(table: pd.DataFrame, *rules) -> list[tuple[str, str | None]]:
    report = DataValidator(parse_rules(list(rules) or RULES)).validate(table)
    return [(check.name, check.column) for check in report.failures]


def test_good_data_passes_every_check(digits):
    report = DataValidator(parse_rules(RULES)).validate(digits)

    assert report.passed
    assert len(report.checks) == 1 + 4 + 6 + 1 + 1 + 1 + 1
    assert str(report) == "All 15 checks passed on 100 rows and 6 columns."


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("label", 10, ("in_set", "label")),
        ("pixel_2", 17, ("between", "pixel_2")),
        ("pixel_2", -1, ("between", "pixel_2")),
        ("id", "d98", ("unique", "id")),
        ("id", "x99", ("matches", "id")),
    ],
)
def test_one_bad_value_fails_exactly_its_rule(digits, column, value, expected):
    digits.loc[99, column] = value

    assert failures(digits) == [expected]


def test_a_missing_value_fails_not_null_and_only_that(digits):
    digits["pixel_1"] = digits["pixel_1"].astype(float)
    digits.loc[7, "pixel_1"] = np.nan

    assert failures(digits) == [("not_null", "pixel_1")]


def test_a_failure_says_how_many_shows_some_and_tells_what_was_required(digits):
    digits.loc[:2, "pixel_0"] = 99

    report = DataValidator(parse_rules(RULES)).validate(digits)

    (check,) = report.failures
    assert (check.unexpected_count, check.unexpected_examples) == (3, (99, 99, 99))
    assert "1 of 15 checks failed on 100 rows and 6 columns" in str(report)
    assert "column 'pixel_0', between: 3 of 100 values are not as expected (such as 99)" in str(report)
    assert "at least 0 and at most 16" in str(report)


def test_too_few_rows_and_a_lost_column_are_noticed(digits):
    assert failures(digits.drop(columns="pixel_3").head(50)) == [("rows", None), ("column_count", None)]


def test_a_rule_that_finds_no_column_fails_instead_of_passing_on_nothing(digits):
    assert failures(digits, {"columns": "feature_*", "between": [0, 1]}, {"not_null": "absent"}) == [
        ("between", "feature_*"),
        ("not_null", "absent"),
    ]


def test_a_check_that_cannot_be_made_fails_with_its_reason(digits):
    report = DataValidator(parse_rules([{"column": "id", "between": [0, 1]}])).validate(digits)

    assert not report.passed
    assert "could not be checked" in str(report)


def test_the_same_rule_twice_is_two_checks(digits):
    assert failures(digits, {"rows": {"at_least": 200}}, {"rows": {"at_least": 200}}) == [("rows", None)] * 2


def test_a_report_is_plain_json(digits):
    digits["pixel_0"] = digits["pixel_0"].astype(float)
    digits.loc[0, "pixel_0"] = np.inf
    report = DataValidator(parse_rules(RULES)).validate(digits)

    stated = json.loads(report.to_json(), parse_constant=pytest.fail)

    assert stated["passed"] is False
    assert [check["unexpected_examples"] for check in stated["checks"] if not check["passed"]] == [["Infinity"]]


def test_nothing_is_printed(digits, capfd):
    failures(digits)

    assert capfd.readouterr() == ("", "")


def test_a_validator_without_rules_cannot_be_built():
    with pytest.raises(ConfigError, match="every table"):
        DataValidator([])
