"""Asks a worker where it is: its Python stacks by a signal, torch's flight recorder by a FIFO, else the kernel."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.fault_tolerance.recovery.hang.answering import STACK_SIGNAL, AnswerFiles
from production_ml.fault_tolerance.recovery.hang.processes import (
    ProcessFacts,
    catches,
    data_workers_of,
    kernel_place,
    look_at,
)
from production_ml.fault_tolerance.recovery.hang.stacks import Activity, Stack, activity_of, parse_stacks, place_of

_ANSWER_SECONDS: Final = 1.0
"""An answer takes milliseconds; a process that gets no CPU for so long is told by its kernel state."""
_LOOK_SECONDS: Final = 0.01
_IS_BUSY: Final = 0.25
"""Of a core. A process that waits uses a few thousandths."""
_MAIN_THREAD: Final = re.compile(r"main thread 0x([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class WatchedWorker:
    """One worker of this node."""

    rank: int
    local_rank: int
    pid: int
    files: AnswerFiles


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker and its kernel said at one moment."""

    process: ProcessFacts
    seconds: float
    """When, on the monotonic clock."""
    dump: str
    """As faulthandler wrote it; empty where there was no answer."""
    stack: Stack
    """The main thread's."""


def ask_for_stacks(workers: Iterable[WatchedWorker]) -> dict[int, Answer]:
    """All workers at once, by rank: those that hang cost one wait together."""
    workers = list(workers)
    sizes = {worker.rank: _size(worker.files.stacks) for worker in workers}
    asked = {worker.rank for worker in workers if _ask(worker.pid)}
    deadline = time.monotonic() + _ANSWER_SECONDS
    former = sizes
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = {worker.rank: _size(worker.files.stacks) for worker in workers}
        # A dump comes in several writes: it is whole when nothing has been added for a moment.
        if now == former and all(now[rank] > sizes[rank] for rank in asked):
            break
        former = now
    answers = {}
    for worker in workers:
        dump = _read_from(worker.files.stacks, sizes[worker.rank])
        stack = parse_stacks(dump).get(_main_thread(worker.files.stacks), ())
        answers[worker.rank] = Answer(look_at(worker.pid), time.monotonic(), dump, stack)
    return answers


def ask_for_flight_recorders(workers: Iterable[WatchedWorker]) -> dict[int, bytes]:
    """The flight recorder of each rank that can answer; one whose GIL is held cannot."""
    asked = []
    for worker in workers:
        worker.files.flight.unlink(missing_ok=True)
        if look_at(worker.pid).state == "stopped":
            continue
        with suppress(OSError):  # nobody reads: the worker is no Python, or has not come that far
            descriptor = os.open(worker.files.question, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(descriptor, b"?")
            finally:
                os.close(descriptor)
            asked.append(worker)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline and not all(worker.files.flight.exists() for worker in asked):
        time.sleep(_LOOK_SECONDS)
    return {worker.rank: worker.files.flight.read_bytes() for worker in asked if worker.files.flight.exists()}


def last_collective(flight: bytes) -> tuple[int | None, str | None]:
    """How many collectives a rank has entered, over all its groups, and the name of the newest."""
    try:
        record: Mapping[str, Any] = json.loads(flight)
        groups = record.get("pg_status", {}).values()
        entries = record.get("entries", [])
        entered = [int(group["last_enqueued_collective"]) for group in groups]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, None
    if not entered:
        return None, None
    newest = max(entries, key=lambda entry: int(entry["record_id"]), default=None)
    return sum(max(number, 0) for number in entered), newest and str(newest["profiling_name"])


def judge(first: Answer, second: Answer, pid: int) -> tuple[Activity, str, bool, bool]:
    """The activity and place of a rank; whether its CPU time grows; whether it moves on."""
    watched_seconds = max(second.seconds - first.seconds, _LOOK_SECONDS)
    is_busy = (second.process.cpu_seconds - first.process.cpu_seconds) / watched_seconds > _IS_BUSY
    if not second.stack:
        return Activity.UNKNOWN, kernel_place(pid), is_busy, False
    return activity_of(second.stack), place_of(second.stack), is_busy, first.stack != second.stack


def data_worker_findings(worker: WatchedWorker) -> tuple[tuple[str, ...], str]:
    """What the DataLoader's processes of a rank do, in words, and their stacks as they dumped them."""
    findings, dumps = [], []
    for pid in data_workers_of(worker.pid):
        process = look_at(pid)
        size = _size(worker.files.stacks)
        # A forked child has its parent's handler, and the parent's file.
        dump = _dump_of_child(worker.files.stacks, pid, size) if _ask(pid) else ""
        stacks = list(parse_stacks(dump).values())
        place = next((place_of(stack) for stack in stacks if _is_at_user_code(stack)), "")
        if process.state in ("stopped", "ended", "waits for a device"):
            findings.append(f"its DataLoader worker {pid} is {process.state}")
        elif place:
            findings.append(f"its DataLoader worker {pid} is at {place}")
        dumps.append(f"DataLoader worker {pid} ({process.state}):\n{dump}")
    return tuple(findings), "\n".join(dumps)


def _is_at_user_code(stack: Stack) -> bool:
    """Rather than in the queue, where it waits for what to fetch next: torch's worker loop is innermost there."""
    own = next((index for index, frame in enumerate(stack) if not frame.is_library), None)
    loop = next((index for index, frame in enumerate(stack) if frame.function == "_worker_loop"), len(stack))
    return own is not None and own < loop


def _dump_of_child(path: Path, pid: int, size: int) -> str:
    deadline = time.monotonic() + _ANSWER_SECONDS
    former = size
    while time.monotonic() < deadline and look_at(pid).state != "stopped":
        time.sleep(_LOOK_SECONDS)
        now = _size(path)
        if now == former > size:
            break
        former = now
    return _read_from(path, size)


def _ask(pid: int) -> bool:
    if not catches(pid, STACK_SIGNAL):
        return False
    with suppress(OSError):
        os.kill(pid, STACK_SIGNAL)
    return look_at(pid).state != "stopped"


def _main_thread(path: Path) -> int:
    try:
        with path.open() as stacks:
            found = _MAIN_THREAD.match(stacks.readline())
    except OSError:
        return 0
    return int(found[1], 16) if found else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_from(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as stacks:
            stacks.seek(offset)
            return stacks.read().decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int) -> None:
    """SIGKILL, which reaches a stopped process too; without a grace, for what hangs tidies up nothing."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
