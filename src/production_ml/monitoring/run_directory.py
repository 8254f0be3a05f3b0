"""One class owns every file name of a run, and one function decides which run this process belongs to."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from production_ml.core.distributed_env import RUN_DIR_VARIABLE, DistributedEnv
from production_ml.core.errors import ConfigError, InputFileError, RunDirectoryError

RUNS_ROOT_VARIABLE = "PRODUCTION_ML_RUNS"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """What stays the same over all attempts of a run."""

    project: str
    experiment: str
    run_id: str


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Where a run keeps what."""

    path: Path

    @property
    def identity_file(self) -> Path:
        return self.path / "run.json"

    @property
    def log_directory(self) -> Path:
        """The run log: one file per process that wrote to it."""
        return self.path / "run_log"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / "metrics.jsonl"

    def run_log(self, role: str, attempt: int) -> Path:
        """The file that this process appends to; the host and the pid keep two writers apart."""
        return self.log_directory / f"{role}.attempt-{attempt:03d}.{socket.gethostname()}-{os.getpid()}.runlog"

    def structured_log(self, role: str) -> Path:
        return self.path / "logs" / f"{role}.jsonl"

    def exporter_lock(self, node: str) -> Path:
        return self.path / "exporter" / f"{node}.lock"

    def exporter_endpoint(self, node: str) -> Path:
        return self.path / "exporter" / f"{node}.json"

    def exporter_output(self, node: str) -> Path:
        return self.path / "exporter" / f"{node}.log"

    def create(self) -> None:
        """Make the directories, and prove that they can be written.

        Raises:
            RunDirectoryError: They cannot; raised before training starts, so nothing is lost.
        """
        try:
            for directory in (self.log_directory, self.path / "logs", self.path / "exporter"):
                directory.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as problem:
            raise RunDirectoryError(
                self.path,
                f"the run directory cannot be written ({problem.strerror})",
                meaning="Nothing was started and nothing is lost.",
                cure=f"Choose another place with run_dir=, --run-dir or {RUNS_ROOT_VARIABLE}, or free this one.",
            ) from problem

    def identity(self) -> RunIdentity:
        """Read who the run is.

        Raises:
            InputFileError: There is no run in this directory.
        """
        try:
            return RunIdentity(**json.loads(self.identity_file.read_text()))
        except FileNotFoundError:
            raise InputFileError(
                self.path, "holds no run (run.json is missing)", cure="Give the directory of one run, such as runs/…/…"
            ) from None
        except (OSError, ValueError, TypeError) as problem:
            raise InputFileError(self.identity_file, f"is not a readable run identity ({problem})") from problem

    def claim(self, identity: RunIdentity) -> RunIdentity:
        """Write the identity unless the run has one; whoever comes first decides, for all ranks and attempts."""
        temporary = self.identity_file.with_name(f".run-{os.getpid()}.json")
        temporary.write_text(json.dumps(asdict(identity)) + "\n")
        try:
            os.link(temporary, self.identity_file)
        except FileExistsError:
            return self.identity()
        finally:
            temporary.unlink()
        return identity


def choose_run_directory(
    identity_wish: RunIdentity, *, run_dir: Path | str | None, environ: Mapping[str, str]
) -> RunDirectory:
    """The run this process belongs to: the launcher's word, else the caller's, else a new directory."""
    if given := environ.get(RUN_DIR_VARIABLE) or run_dir:
        return RunDirectory(Path(given).absolute())
    root = Path(environ.get(RUNS_ROOT_VARIABLE, "runs"))
    for field in ("project", "experiment", "run_id"):
        _check_name(field, getattr(identity_wish, field))
    return RunDirectory((root / identity_wish.project / identity_wish.experiment / identity_wish.run_id).absolute())


def new_run_id() -> str:
    """Sorts by time, and two started in the same second differ."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def shared_run_id(environ: Mapping[str, str], env: DistributedEnv) -> str:
    """A run id that all ranks and attempts under one launcher agree on without talking.

    torchrun's `--rdzv-id` is that id where it is given; without one it reads "none", and then the launcher
    process on this host stands for the run.
    """
    launcher_id = environ.get("TORCHELASTIC_RUN_ID", "none")
    if launcher_id != "none":
        return re.sub(r"[^A-Za-z0-9._\-]", "-", launcher_id)
    if env.owner_pid != os.getpid():
        return f"{socket.gethostname()}-{env.owner_pid}-{process_start(env.owner_pid)}"
    return new_run_id()


def process_start(pid: int) -> int:
    """When a process started, in clock ticks since boot; with the pid it names a process for good. 0 if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command name, in parentheses, may hold spaces; what follows it is the third field.
    return int(stat.rpartition(")")[2].split()[19])


def _check_name(field: str, value: str) -> None:
    if not _SAFE_NAME.fullmatch(value):
        raise ConfigError(field, value, "must be made of letters, digits, '.', '_' and '-': it names a directory")
