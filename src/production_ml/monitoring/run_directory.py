"""One class owns every file name of a run, and one function decides which run this process belongs to."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.distributed_env import RUN_DIR_VARIABLE, DistributedEnv
from production_ml.core.errors import InputFileError, RunDirectoryError
from production_ml.storage.names import check_name, safe_name

RUNS_ROOT_VARIABLE = "PRODUCTION_ML_RUNS"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


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
        """Held by the node's exporter for as long as it lives."""
        return self.path / "exporter" / f"{node}.lock"

    def exporter_start_lock(self, node: str) -> Path:
        """Held for moments, by who starts an exporter and by an exporter that goes."""
        return self.path / "exporter" / f"{node}.start.lock"

    def exporter_endpoint(self, node: str) -> Path:
        """What the node's exporter says about itself."""
        return self.path / "exporter" / f"{node}.json"

    def exporter_output(self, node: str) -> Path:
        """What the node's exporters print."""
        return self.path / "exporter" / f"{node}.log"

    def create(self) -> None:
        """Make the directories, and prove that they can be written.

        Raises:
            RunDirectoryError: They cannot; raised before training starts, so nothing is lost.
        """
        with self._refusing():
            for directory in (self.log_directory, self.path / "logs", self.path / "exporter"):
                directory.mkdir(parents=True, exist_ok=True)
                # Random, because two hosts' processes may have the same pid (in a container, often 1).
                probe = directory / f".writable-{os.urandom(4).hex()}"
                probe.touch()
                probe.unlink()

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
        """Write the identity unless the run has one; whoever comes first decides, for all ranks and attempts.

        Raises:
            RunDirectoryError: It can be neither written nor read.
        """
        if self.identity_file.exists():
            return self.identity()
        temporary = self.path / f".run-{os.urandom(4).hex()}.json"
        with self._refusing():
            try:
                temporary.write_text(json.dumps(asdict(identity)) + "\n")
                os.link(temporary, self.identity_file)  # unlike rename(), it refuses to take the name from another
            except FileExistsError:
                return self.identity()
            finally:
                temporary.unlink(missing_ok=True)
        return identity

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if problem.errno in DISK_IS_FULL and self.identity_file.exists():
                return  # a restarted worker trains on, and its records wait for room
            raise RunDirectoryError(
                self.path,
                f"the run directory cannot be written ({problem.strerror})",
                meaning="Nothing was started and nothing is lost.",
                cure=f"Choose another place with run_dir=, --run-dir or {RUNS_ROOT_VARIABLE}, or free this one.",
            ) from problem


def choose_run_directory(
    identity_wish: RunIdentity, *, run_dir: Path | str | None, environ: Mapping[str, str]
) -> RunDirectory:
    """The run this process belongs to: the launcher's word, else the caller's, else a new directory.

    Raises:
        ConfigError: A name of the identity cannot name a directory.
    """
    for field, name in asdict(identity_wish).items():
        check_name(field, name)
    if given := environ.get(RUN_DIR_VARIABLE) or run_dir:
        return RunDirectory(Path(given).absolute())
    root = Path(environ.get(RUNS_ROOT_VARIABLE, "runs"))
    return RunDirectory((root / identity_wish.project / identity_wish.experiment / identity_wish.run_id).absolute())


def new_run_id() -> str:
    """Sorts by time, and two started in the same second differ."""
    started = time.localtime(SYSTEM_CLOCK.wall_seconds())
    return f"{time.strftime('%Y%m%d-%H%M%S', started)}-{os.urandom(3).hex()}"


def shared_run_id(environ: Mapping[str, str], env: DistributedEnv) -> str:
    """A run id that all ranks and attempts under one launcher agree on without talking.

    torchrun's `--rdzv-id` is that id where it is given; without one it reads "none", and then the launcher
    process on this host stands for the run. Without a launcher, processes that `srun` started share its job step.
    """
    launcher_id = environ.get("TORCHELASTIC_RUN_ID", "none")
    if launcher_id != "none":
        return safe_name(launcher_id)
    if env.owner_pid != os.getpid():
        return safe_name(f"{socket.gethostname()}-{env.owner_pid}-{process_start(env.owner_pid)}")
    if "SLURM_STEP_ID" in environ and "SLURM_JOB_ID" in environ:
        return safe_name(f"slurm-{environ['SLURM_JOB_ID']}-{environ['SLURM_STEP_ID']}")
    return new_run_id()


def process_start(pid: int) -> int:
    """When a process started, in clock ticks since boot; with the pid it names a process for good.

    0 if there is no such process, or if it has ended and only waits for its parent to ask: in a container whose
    first process never asks, that state lasts.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command name, in parentheses, may hold anything; what follows it is the third field, the state.
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state in ("Z", "X") else int(fields[18])
