"""What was measured as tables: on the terminal, and as the document's Markdown."""

from __future__ import annotations

from typing import Any

from checkpoint_states import GIB
from checkpoint_timing import OURS, Section
from rich.console import Console
from rich.table import Table


def show(console: Console, section: Section) -> None:
    """A table on the terminal, ours in bold."""
    ratios = _ratio_columns([row.to_dict() for row in section.rows])
    table = Table(title=f"{section.title}: {_state(section.to_dict())}", caption=section.note, title_justify="left")
    table.add_column("")
    for column in ("median", "min to max", *ratios):
        table.add_column(column, justify="right")
    for row in section.rows:
        style = "bold" if OURS in row.name else None
        table.add_row(row.name, *_cells(row.to_dict()), *(row.ratios.get(name, "") for name in ratios), style=style)
    console.print(table)


def markdown(document: dict[str, Any]) -> str:
    """All tables, under what they were measured on."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    measured = (
        f"Measured on {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB of memory{gpu}, "
        f"{machine['system']}, Python {machine['python']}; {versions}. Medians of {document['rounds']} rounds, "
        "contenders in turn."
    )
    lines = [measured, ""]
    for section in document["sections"]:
        lines += [*_markdown_table(section), ""]
    return "\n".join(lines)


def _markdown_table(section: dict[str, Any]) -> list[str]:
    ratios = _ratio_columns(section["rows"])
    header = ["", "median", "min to max", *ratios]
    lines = [f"### {section['title']}: {_state(section)}", "", section["note"], ""]
    lines += [_markdown_row(header), _markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for row in section["rows"]:
        name = f"**{row['name']}**" if OURS in row["name"] else row["name"]
        lines.append(_markdown_row([name, *_cells(row), *(row["ratios"].get(ratio, "") for ratio in ratios)]))
    return lines


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio_columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["ratios"]))


def _cells(row: dict[str, Any]) -> list[str]:
    spread = "" if len(row["samples"]) == 1 else f"{_number(row['min'])} to {_number(row['max'])}"
    return [f"{_number(row['median'])} {row['unit']}", spread]


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _state(section: dict[str, Any]) -> str:
    size = section["state_bytes"]
    text = f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.2f} MiB"
    return f"{text} in {section['tensors']:,} tensors"
