"""What the kernel knows of a process: whether it runs, what it waits for, its CPU time, its children."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "waits for a device",
    "T": "stopped",
    "t": "stopped",
    "Z": "ended",
    "X": "ended",
    "I": "sleeping",
}
_DATA_WORKER: Final = "pt_data_worker"
"""How torch names them."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """One look at a process."""

    name: str
    state: str
    cpu_seconds: float
    """Of all its threads, since it began."""


def look_at(pid: int) -> ProcessFacts:
    """The process as it is now; `ended` where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ProcessFacts("", "ended", 0.0)
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return ProcessFacts(name, _STATES.get(fields[0], "sleeping"), (int(fields[11]) + int(fields[12])) / _TICKS)


def children_of(pid: int) -> list[int]:
    """The processes that any of its threads has started and that still run."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return sorted(children)


def data_workers_of(pid: int) -> list[int]:
    """The processes of its DataLoaders."""
    return [child for child in children_of(pid) if look_at(child).name.startswith(_DATA_WORKER)]


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, which would end it otherwise."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def kernel_place(pid: int) -> str:
    """Where in the kernel the process waits, for one that does not answer; empty where that is not to be known."""
    for name, take in (("stack", _innermost_call), ("wchan", str.strip)):
        try:
            found = take(Path(f"/proc/{pid}/{name}").read_text())
        except OSError:
            continue
        if found and found != "0":
            return f"in the kernel at {found}"
    return ""


def _innermost_call(stack: str) -> str:
    line = stack.partition("\n")[0]
    return line.rpartition(" ")[2].partition("+")[0]
