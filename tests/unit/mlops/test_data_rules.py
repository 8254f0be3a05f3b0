"""Rules mean what they say, and a slip in a rules file is pointed at."""

from __future__ import annotations

from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError, InputFileError
from production_ml.mlops.data_rules import (
    Between,
    ColumnCount,
    InSet,
    Matches,
    NotNull,
    Rows,
    Unique,
    load_rules,
    parse_rules,
)

EXAMPLE = """
- column: label
  in_set: [0, 1]
  not_null: true
- columns: "pixel_*"
  between: [0, 16]
- columns: [id, name]
  matches: "^[a-z]+$"
- not_null: "*"
- unique: id
- between: [null, 3]
  column: age
- rows: {at_least: 1000}
- column_count: 65
"""


def test_a_rules_file_is_read_in_order(tmp_path: Path):
    path = tmp_path / "rules.yaml"
    path.write_text(EXAMPLE)

    assert load_rules(path) == (
        InSet("label", (0, 1)),
        NotNull("label"),
        Between("pixel_*", 0, 16),
        Matches(("id", "name"), "^[a-z]+$"),
        NotNull("*"),
        Unique("id"),
        Between("age", None, 3),
        Rows(1000),
        ColumnCount(65),
    )


def test_an_unknown_key_is_named_with_its_file_its_position_and_the_allowed_ones(tmp_path: Path):
    path = tmp_path / "rules.yaml"
    path.write_text('- not_null: "*"\n- column: a\n  betwen: [0, 1]\n')

    with pytest.raises(ConfigError) as caught:
        load_rules(path)

    message = str(caught.value)
    assert f"{path}, rule 2, betwen" in message
    for allowed in ("column", "between", "in_set", "rows"):
        assert allowed in message


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("not_null", "must be a mapping"),
        ({}, "has no check"),
        ({"column": "a"}, "has no check"),
        ({"in_set": [1]}, "needs to know the columns"),
        ({"column": "a", "in_set": 1}, "must be a list"),
        ({"column": "a", "in_set": []}, "at least one value"),
        ({"column": "a", "between": [0]}, "low, high"),
        ({"column": "a", "between": ["x", 1]}, "low, high"),
        ({"column": "a", "between": [3, 1]}, "wrong way round"),
        ({"column": "a", "between": [None, None]}, "at least one side"),
        ({"column": "a", "matches": "("}, "regular expression"),
        ({"column": "a", "not_null": False}, "must be true"),
        ({"column": 3, "not_null": True}, "column name"),
        ({"not_null": []}, "column name"),
        ({"rows": 5}, "at_least"),
        ({"rows": {"atleast": 5}}, "at_least"),
        ({"rows": {}}, "at least one side"),
        ({"column": "a", "rows": {"at_least": 5}}, "about the table"),
        ({"column_count": "many"}, "whole number"),
        ({"column": "a", "columns": "b", "not_null": True}, "no known key"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_where_it_stands(entry, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_rules([entry], source="rules.yaml")

    assert caught.value.field.startswith("rules.yaml, rule 1")


@pytest.mark.parametrize("stated", [None, [], {"not_null": "*"}, "not_null"])
def test_a_file_without_rules_is_refused(stated):
    with pytest.raises(ConfigError, match="at least one rule"):
        parse_rules(stated)


@pytest.mark.parametrize("content", ["- [unclosed", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content):
    path = tmp_path / "rules.yaml"
    if content is not None:
        path.write_text(content)

    with pytest.raises(InputFileError) as caught:
        load_rules(path)

    assert caught.value.path == path
