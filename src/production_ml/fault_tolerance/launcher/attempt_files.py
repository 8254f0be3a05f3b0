"""The files that the launcher keeps of each attempt: what every rank printed, and the error it recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from production_ml.core.errors import RunDirectoryError

_ATTEMPT = re.compile(r"attempt-(\d+)")


@dataclass(frozen=True, slots=True)
class AttemptFiles:
    """One attempt's files under the log directory. Ranks are global, so nodes can share the directory."""

    log_directory: Path
    attempt: int

    @property
    def directory(self) -> Path:
        return self.log_directory / f"attempt-{self.attempt:03d}"

    def stdout(self, rank: int) -> Path:
        return self.directory / f"rank-{rank:05d}.stdout.log"

    def stderr(self, rank: int) -> Path:
        return self.directory / f"rank-{rank:05d}.stderr.log"

    def error(self, rank: int) -> Path:
        """Where a script under torchelastic's `record` leaves its exception, as JSON."""
        return self.directory / f"rank-{rank:05d}.error.json"

    def stacks(self, rank: int) -> Path:
        """Where a rank was when a hang was looked into."""
        return self.directory / f"rank-{rank:05d}.stacks.txt"

    def flight_recorder(self, rank: int) -> Path:
        """Torch's record of the rank's newest collectives, at that moment."""
        return self.directory / f"rank-{rank:05d}.flight.json"

    def filtered(self, stream: str) -> Path:
        """The lines that `--duplicate-stdout-filters` and its sister pick, of all ranks."""
        return self.directory / f"filtered_{stream}.log"


def next_attempt(log_directory: Path) -> int:
    """The number after the last attempt that left files: a second launch into a run continues its count.

    Raises:
        RunDirectoryError: The directory cannot be made or read.
    """
    try:
        log_directory.mkdir(parents=True, exist_ok=True)
        matches = [_ATTEMPT.fullmatch(entry.name) for entry in log_directory.iterdir()]
    except OSError as problem:
        raise RunDirectoryError(
            log_directory,
            f"the workers' output cannot be kept there ({problem.strerror})",
            meaning="Nothing was started and nothing is lost.",
            cure="Choose another place with --log-dir or --run-dir.",
        ) from problem
    return max((int(match[1]) + 1 for match in matches if match), default=0)
