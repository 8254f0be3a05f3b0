"""HTML made from text: everything is escaped here, unless it is already `Markup`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from production_ml.core.structured_logging import json_safe


class Markup(str):
    """HTML that is safe as it stands."""

    __slots__ = ()


Cell = str
"""Text, which is escaped, or `Markup`, which is not."""


def escape(text: str) -> Markup:
    """Text as HTML shows it."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """`<tag>children</tag>`; `class_` and `data_label` become `class` and `data-label`."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for name, value in attributes.items() if value
    )
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Markup:
    """All parts, one after the other."""
    return Markup("".join(escape(part) for part in parts))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, numeric: Iterable[str] = (), short: Iterable[str] = ()
) -> Markup:
    """A table; each cell carries its header, since on a phone a row is shown as a list of labelled values.

    Args:
        headers: The columns' names.
        rows: Cells, as many as headers.
        numeric: The columns that are aligned as numbers.
        short: The columns that are never broken; the others share the width that is left.
    """
    kinds = dict.fromkeys(numeric, "number") | dict.fromkeys(short, "short")
    classes = [kinds.get(header, "") for header in headers]
    head = [element("th", header, class_=kind) for header, kind in zip(headers, classes, strict=True)]
    body = [
        [
            element("td", cell, class_=kind, data_label=header)
            for header, kind, cell in zip(headers, classes, row, strict=True)
        ]
        for row in rows
    ]
    lines = [element("tr", *cells) for cells in body]
    return element("table", element("thead", element("tr", *head)), element("tbody", *lines))


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names and values, two columns on any screen."""
    return element("dl", *(part for name, value in rows for part in _fact(name, value)), class_="facts")


def _fact(name: str, value: str) -> tuple[Markup, Markup]:
    return element("dt", name), element("dd", value)


def script_json(data: Any) -> Markup:
    """JSON for a `<script>` element: no `<` in it, so that no text of a user can end the element or open a comment."""
    text = json.dumps(json_safe(data), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
