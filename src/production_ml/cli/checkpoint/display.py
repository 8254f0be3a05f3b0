"""How the checkpoint commands look: sizes for people, and a progress bar that only a terminal sees."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def size_text(size_bytes: int) -> str:
    """`1.2 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min(int(math.log2(size_bytes) // 10), 5)
    return f"{size_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power - 1]}"


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """`loss=0.25, accuracy=0.9`."""
    return ", ".join(f"{name}={float(value):.6g}" for name, value in metrics.items())


def count_text(number: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextlib.contextmanager
def progress(doing: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while something is done; the block is given what to call with each number of bytes more.

    It is for people alone: where stderr is no terminal, nothing is shown.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True) as bar:
        task = bar.add_task(doing, total=total_bytes)
        yield lambda count: bar.advance(task, count)
