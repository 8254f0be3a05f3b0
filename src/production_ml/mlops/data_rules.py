"""What data has to be like: rules in Python or in a small YAML file, without any of the library that checks them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import yaml

from production_ml.core.errors import ConfigError, InputFileError

Columns = str | tuple[str, ...]
"""A column's name, a pattern such as `pixel_*`, or several of them."""


class Rule(Protocol):
    """A rule names an expectation of Great Expectations and its arguments, so that a new rule needs no new checker."""

    name: ClassVar[str]

    @property
    def columns(self) -> Columns | None:
        """The columns it is about, each of which is checked; None for a rule about the table."""
        ...

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The class in `great_expectations.expectations`, and its arguments but for the column."""
        ...

    def __str__(self) -> str:
        """What is required, as a report says it."""
        ...


@dataclass(frozen=True, slots=True)
class InSet:
    """Every value is one of `values`."""

    name: ClassVar[str] = "in_set"
    columns: Columns
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("in_set", [], "must name at least one value: no data can pass an empty set")

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeInSet", {"value_set": list(self.values)}


@dataclass(frozen=True, slots=True)
class Between:
    """Every value lies between `low` and `high`, both included; None leaves a side open."""

    name: ClassVar[str] = "between"
    columns: Columns
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check_range("between", self.low, self.high)

    def __str__(self) -> str:
        return "a value " + _range_text(self.low, self.high)

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeBetween", {"min_value": self.low, "max_value": self.high}


@dataclass(frozen=True, slots=True)
class NotNull:
    """No value is missing. The other rules pass over missing values, so a column that must be full needs this one."""

    name: ClassVar[str] = "not_null"
    columns: Columns

    def __str__(self) -> str:
        return "a value in every row"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToNotBeNull", {}


@dataclass(frozen=True, slots=True)
class Unique:
    """No value comes twice."""

    name: ClassVar[str] = "unique"
    columns: Columns

    def __str__(self) -> str:
        return "no value twice"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToBeUnique", {}


@dataclass(frozen=True, slots=True)
class Matches:
    """Every value, read as text, contains a match of the regular expression `pattern`."""

    name: ClassVar[str] = "matches"
    columns: Columns
    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as problem:
            raise ConfigError("matches", self.pattern, f"is not a regular expression ({problem})") from problem

    def __str__(self) -> str:
        return f"text that matches {self.pattern}"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectColumnValuesToMatchRegex", {"regex": self.pattern}


@dataclass(frozen=True, slots=True)
class Rows:
    """The table has at least, and at most, so many rows."""

    name: ClassVar[str] = "rows"
    columns: ClassVar[None] = None
    at_least: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        _check_range("rows", self.at_least, self.at_most)

    def __str__(self) -> str:
        return "rows: " + _range_text(self.at_least, self.at_most)

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectTableRowCountToBeBetween", {"min_value": self.at_least, "max_value": self.at_most}


@dataclass(frozen=True, slots=True)
class ColumnCount:
    """The table has exactly `count` columns: a pattern such as `pixel_*` cannot notice one that is gone."""

    name: ClassVar[str] = "column_count"
    columns: ClassVar[None] = None
    count: int

    def __str__(self) -> str:
        return f"{self.count} columns"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        return "ExpectTableColumnCountToEqual", {"value": self.count}


def load_rules(path: Path | str) -> tuple[Rule, ...]:
    """Read a YAML list of rules.

        - column: label
          in_set: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        - columns: "pixel_*"
          between: [0, 16]
        - not_null: "*"
        - rows: {at_least: 1000}

    Raises:
        InputFileError: The file cannot be read, or is not YAML.
        ConfigError: A rule cannot work; the error names the file, the rule's position and the key.
    """
    source = Path(path)
    try:
        stated = yaml.safe_load(source.read_text())
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise InputFileError(source, f"cannot be read as YAML ({problem})") from problem
    return parse_rules(stated, source=str(source))


def parse_rules(stated: Any, *, source: str = "rules") -> tuple[Rule, ...]:
    """Rules from plain lists and mappings, as `load_rules` finds them in a file; `source` is for messages.

    Raises:
        ConfigError: A rule cannot work.
    """
    if not isinstance(stated, list) or not stated:
        raise ConfigError(source, stated, "must be a list of at least one rule", cure='For example: - not_null: "*"')
    return tuple(
        rule
        for position, entry in enumerate(stated, start=1)
        for rule in _parse_entry(f"{source}, rule {position}", entry)
    )


def _parse_entry(where: str, entry: Any) -> list[Rule]:
    if not isinstance(entry, Mapping):
        raise ConfigError(where, entry, f"must be a mapping with one of the keys {', '.join(_CHECKS)}")
    selector = next((key for key in _SELECTORS if key in entry), None)
    checks = {key: value for key, value in entry.items() if key != selector}
    for key in checks:
        if key not in _CHECKS:
            raise ConfigError(
                f"{where}, {key}", entry[key], f"is no known key; allowed are {', '.join((*_SELECTORS, *_CHECKS))}"
            )
    if not checks:
        raise ConfigError(f"{where}, {selector}", entry.get(selector), f"has no check; add one of {', '.join(_CHECKS)}")
    columns = None if selector is None else _columns(f"{where}, {selector}", entry[selector])
    return [_parse_check(f"{where}, {key}", key, columns, value) for key, value in checks.items()]


def _parse_check(where: str, key: str, columns: Columns | None, value: Any) -> Rule:
    try:
        return _CHECKS[key](where, columns, value)
    except ConfigError as problem:
        if problem.field.startswith(where):
            raise
        raise ConfigError(where, value, problem.what.partition(": ")[2]) from problem


def _in_set(where: str, columns: Columns | None, value: Any) -> Rule:
    return InSet(_needed(where, columns), tuple(_list(where, value)))


def _between(where: str, columns: Columns | None, value: Any) -> Rule:
    limits = _list(where, value)
    if len(limits) != 2 or not all(limit is None or _is_number(limit) for limit in limits):
        raise ConfigError(where, value, "must be [low, high], each a number or null")
    return Between(_needed(where, columns), *limits)


def _matches(where: str, columns: Columns | None, value: Any) -> Rule:
    return Matches(_needed(where, columns), value)


def _without_argument(rule: Callable[[Columns], Rule]) -> Callable[[str, Columns | None, Any], Rule]:
    def parse(where: str, columns: Columns | None, value: Any) -> Rule:
        if columns is None:
            return rule(_columns(where, value))
        if value is not True:
            raise ConfigError(where, value, "must be true where the columns are named beside it")
        return rule(columns)

    return parse


def _rows(where: str, columns: Columns | None, value: Any) -> Rule:
    _refuse_columns(where, columns)
    allowed = [field.name for field in fields(Rows)]
    if not isinstance(value, Mapping) or not set(value) <= set(allowed) or not all(map(_is_number, value.values())):
        raise ConfigError(where, value, f"must be a mapping from {' or '.join(allowed)} to a number")
    return Rows(**value)


def _column_count(where: str, columns: Columns | None, value: Any) -> Rule:
    _refuse_columns(where, columns)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(where, value, "must be a whole number")
    return ColumnCount(value)


_SELECTORS: Final = ("column", "columns")
_CHECKS: Final[Mapping[str, Callable[[str, Columns | None, Any], Rule]]] = {
    "in_set": _in_set,
    "between": _between,
    "matches": _matches,
    "not_null": _without_argument(NotNull),
    "unique": _without_argument(Unique),
    "rows": _rows,
    "column_count": _column_count,
}


def _columns(where: str, value: Any) -> Columns:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise ConfigError(where, value, 'must be a column name, a pattern such as "pixel_*", or a list of them')


def _needed(where: str, columns: Columns | None) -> Columns:
    if columns is None:
        raise ConfigError(where, None, "needs to know the columns: add 'column' or 'columns' to the rule")
    return columns


def _refuse_columns(where: str, columns: Columns | None) -> None:
    if columns is not None:
        raise ConfigError(where, columns, "is about the table: it takes no 'column' or 'columns'")


def _list(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ConfigError(where, value, "must be a list")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _check_range(field: str, low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise ConfigError(field, [low, high], "must have a limit on at least one side")
    if low is not None and high is not None and low > high:
        raise ConfigError(field, [low, high], "has its limits the wrong way round")


def _range_text(low: float | None, high: float | None) -> str:
    limits = (("at least", low), ("at most", high))
    return " and ".join(f"{side} {limit}" for side, limit in limits if limit is not None)
