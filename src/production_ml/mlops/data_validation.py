"""Data checks with Great Expectations, before a model learns from the data."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from production_ml.core.errors import ConfigError, InputFileError, MissingDependencyError
from production_ml.core.structured_logging import json_safe
from production_ml.mlops.data_rules import Rule, load_rules, parse_rules

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Check", "DataValidator", "ValidationReport", "load_rules", "parse_rules", "read_table"]

_EXAMPLES: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One rule on one column, or on the table."""

    name: str
    """The rule's name, as in a rules file: `between`."""
    column: str | None
    """None for a rule about the table."""
    passed: bool
    required: str
    observed: str
    unexpected_count: int = 0
    unexpected_examples: tuple[Any, ...] = ()

    def __str__(self) -> str:
        subject = f"column {self.column!r}" if self.column is not None else "table"
        examples = ", ".join(dict.fromkeys(map(str, self.unexpected_examples)))
        found = self.observed + (f" (such as {examples})" if examples else "")
        return f"{subject}, {self.name}: {found}; required: {self.required}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """What was checked, and what was found."""

    checks: tuple[Check, ...]
    """In the order of the rules, then of the columns."""
    rows: int
    columns: int

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        table = f"{self.rows} rows and {self.columns} columns"
        if self.passed:
            return f"All {len(self.checks)} checks passed on {table}."
        lines = [f"{len(self.failures)} of {len(self.checks)} checks failed on {table}:"]
        return "\n".join([*lines, *(f"  {check}" for check in self.failures)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, **json_safe(asdict(self))}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=2)


def read_table(path: Path) -> pd.DataFrame:
    """The table in a .csv or .parquet file.

    Raises:
        InputFileError: The file is missing, or is no table.
        MissingDependencyError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as missing:
        raise MissingDependencyError("pandas", extra="data", purpose="Reading a table") from missing
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as problem:
        raise InputFileError(path, f"cannot be read as a table ({problem})") from problem


class DataValidator:
    """Checks tables against rules; all checks of a table are one validation, so that shared work is done once.

    Args:
        rules: From `load_rules`, `parse_rules`, or built from the classes in `data_rules`.

    Raises:
        ConfigError: There is no rule: every table would pass.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        if not rules:
            raise ConfigError("rules", [], "without a rule every table would pass")
        self.rules = tuple(rules)

    def validate(self, dataframe: pd.DataFrame) -> ValidationReport:
        """Check every row.

        Args:
            dataframe: [rows, columns]; it is not changed.

        Raises:
            MissingDependencyError: Great Expectations is not installed.
        """
        targets = [target for rule in self.rules for target in _targets(rule, list(dataframe.columns))]
        asked = {index: target for index, target in enumerate(targets) if target.exists}
        results = _run(dataframe, asked) if asked else {}
        return ValidationReport(
            checks=tuple(_check(target, results.get(index)) for index, target in enumerate(targets)),
            rows=len(dataframe),
            columns=len(dataframe.columns),
        )


@dataclass(frozen=True, slots=True)
class _Target:
    """A rule and one thing that it is about: a column, the table, or a pattern that found no column."""

    rule: Rule
    column: Any = None
    exists: bool = True


def _targets(rule: Rule, columns: Sequence[Any]) -> Iterator[_Target]:
    if rule.columns is None:
        yield _Target(rule)
        return
    for pattern in (rule.columns,) if isinstance(rule.columns, str) else rule.columns:
        found = [column for column in columns if column == pattern or fnmatchcase(str(column), pattern)]
        yield from (_Target(rule, column) for column in found)
        if not found:
            yield _Target(rule, pattern, exists=False)


def _run(dataframe: pd.DataFrame, asked: Mapping[int, _Target]) -> dict[int, Any]:
    """Great Expectations' result for each target, by its index."""
    gx = _great_expectations()
    with _quiet():
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": dataframe})
        suite = gx.ExpectationSuite("rules", expectations=[_expectation(gx, *item) for item in asked.items()])
        result_format = {"result_format": "BASIC", "partial_unexpected_count": _EXAMPLES}
        found = batch.validate(suite, result_format=result_format)
    # The results come in an order of their own.
    return {int(result.expectation_config.meta["target"]): result for result in found.results}


def _expectation(gx: Any, index: int, target: _Target) -> Any:
    kind, arguments = target.rule.expectation()
    column = {} if target.rule.columns is None else {"column": target.column}
    return getattr(gx.expectations, kind)(**column, **arguments, meta={"target": index})


def _check(target: _Target, result: Any | None) -> Check:
    rule = target.rule
    column = None if rule.columns is None else str(target.column)
    if result is None:
        missing = "there is no such column"
        return Check(name=rule.name, column=column, passed=False, required=str(rule), observed=missing)
    found = result.result
    return Check(
        name=rule.name,
        column=column,
        required=str(rule),
        passed=bool(result.success),
        observed=_observed(found) if found else f"could not be checked: {_exception_message(result.exception_info)}",
        unexpected_count=int(found.get("unexpected_count", 0)),
        unexpected_examples=tuple(_plain(value) for value in found.get("partial_unexpected_list", ())),
    )


def _observed(found: Mapping[str, Any]) -> str:
    if "observed_value" in found:
        return f"observed {found['observed_value']}"
    return f"{found['unexpected_count']} of {found['element_count']} values are not as expected"


def _exception_message(info: Mapping[str, Any]) -> str:
    """The first exception's text; with several metrics it lies one level deeper, under each metric's id."""
    for candidate in (info, *(value for value in info.values() if isinstance(value, Mapping))):
        if candidate.get("exception_message"):
            return str(candidate["exception_message"]).partition("\n")[0]
    return "no reason was given"


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def _great_expectations() -> Any:
    # Read at import; without it every validation would be reported to the makers of the library.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    try:
        with _quiet():
            importlib.import_module("great_expectations.expectations")
            return importlib.import_module("great_expectations")
    except ModuleNotFoundError as missing:
        raise MissingDependencyError("great-expectations", extra="data", purpose="Data validation") from missing


@contextmanager
def _quiet() -> Iterator[None]:
    """Contain what Great Expectations says about its own dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
