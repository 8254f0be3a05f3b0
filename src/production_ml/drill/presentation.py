"""What a person sees of a drill: a live line while a run goes on, a table of verdicts, and the same as a page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from production_ml.drill.runner import Outcome, Reference, Unavailable
from production_ml.drill.scene import Scene
from production_ml.drill.verdict import Verdict

COLUMNS = ("fault", "survived", "struck", "detected", "back", "redone", "lost", "weights", "goodput")
LEGEND = (
    "struck: which rank, after which step · detected, back: seconds to the first event that tells of it, and "
    "to the first step of training that goes on · redone, lost: steps · weights, goodput: beside the run without faults"
)
_NOTHING = "-"


class DrillDisplay:
    """Says what runs now and what came of it, on stderr where stdout is for JSON."""

    def __init__(self, *, is_quiet: bool, seed: int) -> None:
        self._console = Console(stderr=is_quiet)
        self._seed = seed

    def __enter__(self) -> DrillDisplay:
        self._console.print(f"Drill with seed {self._seed}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._console.print("Interrupted; the run under way is being ended.")

    @contextmanager
    def running(self, what: str) -> Iterator[Callable[[Scene], None]]:
        """While a run goes on; gives what is to be called with its scene now and then."""
        spinner = Spinner("dots", text=f"{what}: starting")

        def watch(scene: Scene) -> None:
            steps = [scene.reached(rank) for rank in range(scene.target.workers)]
            spinner.update(text=f"{what}: attempt {max(scene.attempt, 0)}, step {max(steps, default=-1) + 1}")

        if not self._console.is_terminal:
            self._console.print(f"{what} …")
            yield watch
            return
        with Live(spinner, console=self._console, refresh_per_second=8, transient=True):
            yield watch

    def reference(self, reference: Reference) -> None:
        """The run without faults is over."""
        steps = len(reference.course.steps)
        self._console.print(f"without faults: {steps} steps in {reference.seconds:.1f} s")

    def verdict(self, found: Verdict | Unavailable) -> None:
        """One fault has been judged."""
        if isinstance(found, Unavailable):
            self._console.print(f"{found.fault}: [yellow]cannot be caused here[/]: {found.why}")
        elif found.is_survived:
            self._console.print(f"{found.fault}: [green]survived[/]")
        else:
            self._console.print(f"{found.fault}: [red]not survived[/]: {found.why}", soft_wrap=True)

    def end(self, outcome: Outcome, root: Path) -> None:
        """The table, and where to look."""
        table = Table(*COLUMNS, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for verdict in outcome.verdicts:
            cells = [str(cell) for cell in row(verdict.to_dict())]
            table.add_row(*cells, style="" if verdict.is_survived else "red")
        self._console.print(table)
        self._console.print(LEGEND)
        survived = sum(verdict.is_survived for verdict in outcome.verdicts)
        self._console.print(
            f"{survived} of {len(outcome.verdicts)} survived; every run is kept in {root}", soft_wrap=True
        )
        for missing in outcome.unavailable:
            self._console.print(f"not caused: {missing.fault}", soft_wrap=True)


def row(verdict: Mapping[str, Any]) -> list[str]:
    """The cells of one verdict, as `COLUMNS` are headed."""
    equal = verdict["weights_are_equal"]
    return [
        verdict["fault"],
        "yes" if verdict["is_survived"] else "no",
        f"{verdict['rank']}, {verdict['step']}",
        _seconds(verdict["detected_seconds"]),
        _seconds(verdict["recovered_seconds"]),
        _count(verdict["steps_redone"]),
        _count(verdict["steps_lost"]),
        _NOTHING if equal is None else "same" if equal else "other",
        _NOTHING if verdict["goodput_ratio"] is None else f"{verdict['goodput_ratio']:.0%}",
    ]


def html_page(facts: Mapping[str, Any]) -> str:
    """All verdicts as one page that needs no network."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(_html_row(verdict) for verdict in facts["verdicts"])
    missing = "".join(
        f"<li>{html.escape(fault)}: {html.escape(why)}</li>" for fault, why in facts["unavailable"].items()
    )
    verdicts = facts["verdicts"]
    template = resources.files("production_ml.drill").joinpath("page.html").read_text()
    return Template(template).substitute(
        script=html.escape(facts["script"]),
        legend=html.escape(LEGEND),
        survived=sum(verdict["is_survived"] for verdict in verdicts),
        faults=len(verdicts),
        seed=facts["seed"],
        steps=facts["steps"],
        seconds=f"{facts['reference_seconds']:.1f}",
        head=head,
        body=body,
        missing=f"<h2>Not caused here</h2><ul>{missing}</ul>" if missing else "",
    )


def _html_row(verdict: Mapping[str, Any]) -> str:
    labelled = zip(COLUMNS, row(verdict), strict=True)
    cells = "".join(f'<td data-label="{name}">{html.escape(cell)}</td>' for name, cell in labelled)
    why = (
        f'<tr class="why"><td colspan="{len(COLUMNS)}">{html.escape(verdict["why"])}</td></tr>'
        if verdict["why"]
        else ""
    )
    return f'<tr class="{"yes" if verdict["is_survived"] else "no"}">{cells}</tr>{why}'


def _seconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f} s"


def _count(value: int | None) -> str:
    return _NOTHING if value is None else str(value)
