"""The outcomes as a table: a row for each kind of fault, a column for each system."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, Final

_GOOD: Final = ("survived", "detected")
_BAD: Final = ("unnoticed", "silent wrong", "lost good", "false alarm", "stuck", "crashed", "hung")


def as_markdown(results: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    """Two tables: what came of each kind for each system, and each system's outcomes."""
    systems = list(dict.fromkeys(result["system"] for result in results))
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        counts[result["kind"], result["system"]][result["outcome"]] += 1
        counts["", result["system"]][result["outcome"]] += 1
    rows = [
        [kind, *(_cell(counts[kind, system]) for system in systems)]
        for kind in kinds
        if any(counts[kind, s] for s in systems)
    ]
    rows.append(["**all**", *(_cell(counts["", system]) for system in systems)])
    totals = [
        [outcome, *(str(counts["", system][outcome]) for system in systems)]
        for outcome in (*_GOOD, *_BAD, "not reached")
    ]
    return "\n".join([*_table(["fault", *systems], rows), "", *_table(["outcome", *systems], totals), ""])


def _cell(counts: collections.Counter[str]) -> str:
    """`12 of 14; 2 silent wrong`: how many ended well, and how the others did."""
    total = sum(counts[outcome] for outcome in (*_GOOD, *_BAD))
    if not total:
        return "—"
    good = sum(counts[outcome] for outcome in _GOOD)
    bad = [f"{counts[outcome]} {outcome}" for outcome in _BAD if counts[outcome]]
    return "; ".join([f"{good} of {total}", *bad])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
