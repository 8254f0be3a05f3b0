"""One run of the drilled script: its directory, its launcher, and what its run log has said so far."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from production_ml.drill.target import Target
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import EventRecord, MetricsRecord, RunLogFollower

_GRACE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that the run log tells of."""

    step: int
    path: Path


class Scene:
    """A run of the script in a directory of its own, under the launcher. Use it in a `with`, which leaves nothing.

    Args:
        target: What runs.
        directory: Where: `work` is the script's working directory, `run` the run's, `output.log` what was printed.
    """

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        self.directory = directory
        self.work = directory / "work"
        self.run = RunDirectory(directory / "run")
        self.output = directory / "output.log"
        self.struck_marker = directory / "struck"
        """Made at the moment it strikes by a fault that does so by itself, within a worker."""
        self.environment: dict[str, str] = {}
        """What a fault adds to the script's own."""
        self.prefix: list[str] = []
        """What a fault puts before the launcher's command, such as `nsenter …`."""
        self.checkpoints: list[SavedCheckpoint] = []
        self.attempt = -1
        self.pids: Mapping[int, int] = {}
        """The workers of the newest attempt, by local rank."""
        self._steps: dict[int, int] = {}
        self._follower = RunLogFollower(self.run)
        self._launcher: subprocess.Popen[bytes] | None = None
        self.work.mkdir(parents=True)

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Start the launcher; again after it has ended, as a scheduler would."""
        # Unbuffered, so that the last words of what is killed are there.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        with self.output.open("ab") as output:
            self._launcher = subprocess.Popen(  # noqa: S603 - the command that the user drills
                [*self.prefix, *self.target.command(self.run.path)],
                cwd=self.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def poll(self) -> None:
        """Read what is new in the run log."""
        for sourced in self._follower.poll():
            record = sourced.record
            if isinstance(record, EventRecord):
                self._note(record)
            elif isinstance(record, MetricsRecord) and sourced.source.attempt == self.attempt:
                self._steps[sourced.source.rank] = record.step

    def reached(self, rank: int) -> int:
        """The newest step that `rank` has logged in the newest attempt, -1 before its first."""
        return self._steps.get(rank, -1)

    @property
    def launcher_pid(self) -> int:
        """The process that a scheduler would signal."""
        assert self._launcher is not None, "a scene is started before it is looked at"  # noqa: S101
        return self._launcher.pid

    @property
    def exit_code(self) -> int | None:
        """The launcher's, None while it runs."""
        return None if self._launcher is None else self._launcher.poll()

    def await_exit(self, seconds: float) -> int | None:
        """The launcher's exit code, at most so much later; None if it still runs then."""
        if self._launcher is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(seconds)
        return self._launcher.returncode

    def end(self) -> None:
        """End the launcher, and with it all workers."""
        if self._launcher is None or self._launcher.poll() is not None:
            return
        for pid in self.pids.values():  # one that a fault has stopped would not hear of it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)
        self._launcher.terminate()
        if self.await_exit(_GRACE_SECONDS) is None:
            # Its guardian kills the workers with it.
            self._launcher.kill()
            self._launcher.wait()

    def last_lines(self, count: int = 12) -> str:
        """The end of what was printed."""
        if not self.output.exists():
            return ""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-count:])

    def _note(self, event: EventRecord) -> None:
        if event.name == "attempt_started":
            self.attempt = int(event.fields["attempt"])
            self.pids = {int(rank): int(pid) for rank, pid in event.fields["worker_pids"].items()}
            self._steps.clear()
        elif event.name == "checkpoint_saved" and event.step is not None:
            # The script's own words for the place may be relative to where it runs.
            self.checkpoints.append(SavedCheckpoint(event.step, self.work / str(event.fields["path"])))
