"""What was measured as tables: on the terminal, and as the document's Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from checkpoint_goals import against_goals
from checkpoint_states import GIB
from checkpoint_timing import OURS, Section

_MARK = "<!-- What stands below is written by `make bench-checkpoint`. -->\n"


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
    lines = [measured, "", *_goals(document["sections"]), ""]
    for section in document["sections"]:
        lines += [*_markdown_table(section), ""]
    return "\n".join(lines)


def write_into(path: Path, text: str) -> None:
    """Put `text` below the line that says where measured tables begin; what stands above it stays."""
    above, mark, _ = path.read_text().partition(_MARK) if path.exists() else ("", "", "")
    path.write_text(f"{above}{_MARK if mark else ''}\n{text.rstrip()}\n" if mark else f"{text.rstrip()}\n")


def show_goals(console: Console, sections: list[dict[str, Any]]) -> None:
    """The goals on the terminal, reached or not."""
    table = Table(title="Goals", title_justify="left")
    for column in ("", "goal", "measured", ""):
        table.add_column(column)
    for text, limit, measured, is_met in against_goals(sections):
        table.add_row(text, limit, measured, "met" if is_met else "missed", style=None if is_met else "red")
    console.print(table)


def _goals(sections: list[dict[str, Any]]) -> list[str]:
    lines = ["### Goals", "", "| | goal | measured | |", "| --- | --- | --- | --- |"]
    for text, limit, measured, is_met in against_goals(sections):
        lines.append(_markdown_row([text, limit, measured, "met" if is_met else "**missed**"]))
    return lines


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
