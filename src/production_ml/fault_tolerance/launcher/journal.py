"""The launcher's own account: each thing that happens goes to the run log, and as one line to the person watching."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.fault_tolerance.launcher.failures import WorkerFailure
from production_ml.monitoring.run_directory import RunDirectory, process_start
from production_ml.monitoring.run_log import RunLogWriter, Source

_RECORDED_STDERR_LINES = 20
Say = Callable[[str], None]


def say_nothing(_line: str) -> None:
    """For `--quiet`."""


class LaunchJournal:
    """Writes the events attempt_started, worker_failed, restart_scheduled and launch_finished.

    Args:
        run: Whose log is written.
        first_attempt: The attempt that this launch begins with.
        world_size: How many workers there are at least, over all nodes.
        say: Takes a line for a person.
    """

    def __init__(
        self, run: RunDirectory, *, first_attempt: int, world_size: int, say: Say, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._run = run
        self._say = say
        self._clock = clock
        self._began = clock.monotonic_seconds()
        self._failed_at: float | None = None
        self.failures: list[WorkerFailure] = []
        """Of the newest attempt that failed, the likeliest cause first."""
        self.restarts = 0
        pid = os.getpid()
        source = Source(
            role="launcher",
            rank=0,
            world_size=world_size,
            attempt=first_attempt,
            node=socket.gethostname(),
            pid=pid,
            owner_pid=pid,
            owner_start=process_start(pid),
            started_at=clock.wall_seconds(),
        )
        self._writer = RunLogWriter(lambda: run.run_log("launcher", first_attempt), source, clock)

    def attempt_started(self, attempt: int, *, world_size: int, pids: Mapping[int, int]) -> None:
        """All workers of this node have been started; `pids` is by local rank."""
        worker_pids = {str(local_rank): pid for local_rank, pid in pids.items()}
        self._writer.event("attempt_started", attempt=attempt, world_size=world_size, worker_pids=worker_pids)
        shown = ", ".join(str(pid) for pid in pids.values())
        here = f"{len(pids)} of " if len(pids) < world_size else ""
        workers = f"{here}{world_size} worker{'s' if world_size > 1 else ''}"
        if self._failed_at is None:
            self._say(f"attempt {attempt}: {workers} (pid {shown}), run directory {_short(self._run.path)}")
        else:
            seconds = self._clock.monotonic_seconds() - self._failed_at
            self._say(f"attempt {attempt}: {workers} (pid {shown}), started {seconds:.2f} s after the failure was seen")

    def workers_failed(self, failures: list[WorkerFailure]) -> None:
        """Workers ended otherwise than with success; the likeliest cause comes first."""
        self._failed_at = self._clock.monotonic_seconds()
        self.failures = failures
        for failure in failures:
            facts = asdict(failure)
            facts["stderr_tail"] = failure.stderr_tail[-_RECORDED_STDERR_LINES:]
            self._writer.event("worker_failed", level="error", message=describe(failure), **facts)
            self._say(f"attempt {failure.attempt}: {describe(failure)}")

    def restart_scheduled(self, attempt: int, *, restarts_left: int) -> None:
        """The workers will be started again, as `attempt`."""
        self.restarts += 1
        self._writer.event("restart_scheduled", attempt=attempt, restarts_left=restarts_left)
        self._say(f"restarting all workers; restarts left after this one: {restarts_left}")

    def happened(self, event: str, line: str, *, level: str, **facts: Any) -> None:
        """Something that another part of the launcher has seen, with its own words for a person."""
        self._writer.event(event, level=level, message=line, **facts)
        self._say(line)

    def interrupted(self, signal_name: str, *, grace_seconds: float) -> None:
        """A signal asks the launcher to end."""
        self._say(f"{signal_name}: stopping all workers (killed after {grace_seconds:g} s, or at a second signal)")

    def finished(self, outcome: str, exit_code: int) -> None:
        """The launch is over: "succeeded", "failed" or "interrupted"."""
        self._writer.event("launch_finished", outcome=outcome, exit_code=exit_code)
        self._writer.close()
        seconds = self._clock.monotonic_seconds() - self._began
        restarts = f"{self.restarts} restart{'s' if self.restarts != 1 else ''}"
        cure = f"; look at it with: production-ml report {_short(self._run.path)}"
        self._say(f"{outcome} after {seconds:.1f} s and {restarts}{cure}")


def describe(failure: WorkerFailure) -> str:
    """The failure in one line."""
    who = f"rank {failure.rank} (pid {failure.pid})"
    if failure.signal is not None:
        return f"{who} was killed by {failure.signal}"
    known = "" if failure.reason.startswith("exit code") else f": {failure.reason}"
    return f"{who} failed with exit code {failure.exit_code}{known}"


def _short(path: Path) -> Path:
    """The path as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
