"""What a person sees of the demo: a live table of stations on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 60


@dataclass(frozen=True, slots=True)
class TrainingView:
    """How far a training has come, for a progress bar."""

    step: int
    steps: int
    loss: float | None
    accuracy: float | None
    samples_per_second: float | None
    workers: str
    """Such as `rank 0: pid 71, rank 1: pid 72`."""


class Display(Protocol):
    """Takes what happens, in order; every word of it was measured by the caller."""

    def begin(self, title: str) -> None:
        """A station begins."""
        ...

    def fact(self, text: str) -> None:
        """Something that was found or done, worth keeping on the screen."""
        ...

    def training(self, view: TrainingView) -> None:
        """A training has moved; shown while it lasts."""
        ...

    def end(self, failed: bool = False) -> None:
        """The station has ended."""
        ...


class PlainDisplay:
    """Lines for a log file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = 0.0
        self._title = ""

    def begin(self, title: str) -> None:
        self._began, self._title = time.monotonic(), title
        self._print(f"{title} ...")

    def fact(self, text: str) -> None:
        self._print(f"  {text}")

    def training(self, view: TrainingView) -> None:
        """Nothing: the facts tell enough where nobody watches."""

    def end(self, failed: bool = False) -> None:
        self._print(f"{self._title}: {'FAILED' if failed else 'done'} in {time.monotonic() - self._began:.1f} s")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class _Station:
    title: str
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    failed: bool = False
    facts: list[str] = field(default_factory=list)


class LiveDisplay:
    """A table that grows station by station; Rich's thread redraws it while the demo works."""

    def __init__(self) -> None:
        self._stations: list[_Station] = []
        self._view: TrainingView | None = None
        self._losses: deque[float] = deque(maxlen=_CURVE_POINTS * 8)
        self._spinner = Spinner("dots", style="cyan")

    def begin(self, title: str) -> None:
        self._stations.append(_Station(title))

    def fact(self, text: str) -> None:
        self._stations[-1].facts.append(text)

    def training(self, view: TrainingView) -> None:
        self._view = view
        if view.loss is not None:
            self._losses.append(view.loss)

    def end(self, failed: bool = False) -> None:
        station = self._stations[-1]
        station.seconds, station.failed = time.monotonic() - station.began, failed
        self._view = None
        self._losses.clear()

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2)
        table.add_column(ratio=1)
        table.add_column(justify="right", style="dim")
        for station in self._stations:
            seconds = time.monotonic() - station.began if station.seconds is None else station.seconds
            table.add_row(self._mark(station), Text(station.title, style="bold"), f"{seconds:.1f} s")
            for fact in station.facts:
                table.add_row("", Text(fact), "")
        view = self._view
        return table if view is None else Group(table, Padding(self._training(view), (1, 0, 0, 3)))

    def _mark(self, station: _Station) -> RenderableType:
        if station.seconds is None:
            return self._spinner
        return Text("✗", style="bold red") if station.failed else Text("✓", style="bold green")

    def _training(self, view: TrainingView) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=view.steps, completed=view.step, width=40), f"step {view.step} of {view.steps}")
        figures = [
            f"loss {view.loss:.3f}" if view.loss is not None else "",
            f"validation accuracy {view.accuracy:.1%}" if view.accuracy is not None else "",
            f"{view.samples_per_second:,.0f} samples/s" if view.samples_per_second is not None else "",
        ]
        return Group(
            bar,
            Text(curve(list(self._losses), _CURVE_POINTS), style="cyan"),
            Text("   ".join(figure for figure in figures if figure)),
            Text(view.workers, style="dim"),
        )


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """The display that suits the console; it stays on the screen when the block is left."""
    if not console.is_terminal:
        yield PlainDisplay(console)
        return
    display = LiveDisplay()
    with Live(display, console=console, refresh_per_second=10, vertical_overflow="visible"):
        yield display


def curve(values: list[float], width: int) -> str:
    """Values as one line of at most `width` bars, each the mean of its share; the highest is a full bar.

    Heights are logarithmic where all values are positive: a loss spends most of its life near its floor.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    width = min(width, len(finite))
    edges = [index * len(finite) // width for index in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    heights = [math.log(mean) for mean in means] if min(means) > 0 else means
    low, high = min(heights), max(heights)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((height - low) * scale)] for height in heights)
