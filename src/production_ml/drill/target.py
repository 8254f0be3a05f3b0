"""What is drilled: a script, its arguments and how many workers run it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from production_ml.core.errors import ConfigError, InputFileError


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A training script, as a user would launch it.

    Raises:
        InputFileError: There is no such script.
        ConfigError: No workers.
    """

    script: Path
    arguments: tuple[str, ...] = ()
    """`{cwd}` in one stands for the directory that the drill was started in, as each run has one of its own."""
    workers: int = 2
    hang_timeout: str = "off"
    """As for `launch`."""
    started_in: Path

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError("--nproc-per-node", self.workers, "there must be at least 1 worker")
        if not self.script.is_file():
            raise InputFileError(self.script, "there is no such training script", meaning="Nothing was started.")

    def command(self, run_directory: Path) -> list[str]:
        """The launcher's command line for a run that is kept in `run_directory`."""
        arguments = [argument.replace("{cwd}", str(self.started_in)) for argument in self.arguments]
        return [
            *(sys.executable, "-m", "production_ml.cli.main", "launch"),
            *("--nproc-per-node", str(self.workers), "--run-dir", str(run_directory)),
            *("--hang-timeout", self.hang_timeout),
            str(self.script.absolute()),
            *arguments,
        ]
