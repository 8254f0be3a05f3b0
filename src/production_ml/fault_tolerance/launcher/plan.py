"""From the command line to a plan: torchrun's own parser plus our flags, and everything checked before a start."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import Std
from torch.distributed.elastic.multiprocessing.api import to_map
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, determine_local_world_size, get_args_parser, parse_min_max_nnodes

from production_ml.core.distributed_env import RUN_DIR_VARIABLE
from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.launcher.environment import THREADS_VARIABLE
from production_ml.fault_tolerance.launcher.target import check_module, check_program, check_script, run_name
from production_ml.fault_tolerance.recovery.hang.limits import HangLimits, parse_hang_timeout
from production_ml.monitoring.run_directory import RUNS_ROOT_VARIABLE, RunDirectory, new_run_id
from production_ml.storage.names import safe_name

MAX_RESTARTS = 3
"""torchrun's default is 0: a job that needs no launcher's help. This launcher is there to restart."""
_DEFAULT_MASTER_PORT = 29500
_NO_RUN_ID = "none"
_LOOPBACK = "127.0.0.1"
"""torchrun's default for --master-addr."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchPlan:
    """What to start, and how."""

    config: LaunchConfig
    """torchelastic's own settings; its logs_specs is not used."""
    command: tuple[str, ...]
    name: str
    run: RunDirectory
    log_directory: Path
    is_single_node: bool
    host: str
    """The single node's address for the workers' store."""
    port: int
    """The store's port on a single node; 0 for a free one."""
    signals: tuple[signal.Signals, ...]
    shown: frozenset[tuple[int, int]]
    """The (local rank, stream) pairs that reach the terminal; 1 is stdout, 2 is stderr."""
    is_quiet: bool
    hang_limits: HangLimits | None
    """None: hangs are not looked for."""

    def is_shown(self, local_rank: int, stream: int) -> bool:
        return (local_rank, stream) in self.shown


def parse_arguments(arguments: Sequence[str]) -> LaunchPlan:
    """Read torchrun's flags and ours, their PET_* variables, the script and the script's own arguments.

    Raises:
        ConfigError: A flag has a value that cannot work.
        InputFileError: The script is missing, or no script.
    """
    given = _parse(arguments)
    _check_target(given)
    local_world_size = _local_world_size(given.nproc_per_node)
    given.nproc_per_node = str(local_world_size)
    is_single_node = _max_nodes(given.nnodes) == 1
    if given.standalone and not is_single_node:
        raise ConfigError("--nnodes", given.nnodes, "cannot go together with --standalone, which means one node")
    if not is_single_node:
        _check_meeting_point(given)
    fixed_port = given.master_port or 0
    run, name = _run_directory(given)
    if is_single_node and given.rdzv_id == _NO_RUN_ID:
        given.rdzv_id = run.path.name  # several nodes keep "none": their names would differ
    config, command = _config(given)
    return LaunchPlan(
        config=config,
        command=command,
        name=name,
        run=run,
        log_directory=Path(given.log_dir).absolute() if given.log_dir else run.path / "logs",
        is_single_node=is_single_node,
        host=given.master_addr,
        port=fixed_port,
        signals=_signals(config.signals_to_handle),
        shown=_shown(given, local_world_size),
        is_quiet=given.quiet,
        hang_limits=parse_hang_timeout(given.hang_timeout),
    )


def argument_parser() -> ArgumentParser:
    """The parser of torchrun with our flags added; PET_* variables are its defaults, as they are there."""
    parser: ArgumentParser = get_args_parser()
    parser.prog = "production-ml launch"
    ours = parser.add_argument_group("production-ml")
    ours.add_argument("--run-dir", "--run_dir", default=os.environ.get(RUN_DIR_VARIABLE), help="Where the run is kept.")
    ours.add_argument("--quiet", action="store_true", help="No lines of the launcher's own on stderr.")
    ours.add_argument(
        "--hang-timeout",
        "--hang_timeout",
        default="off",
        help="auto, auto:FLOOR, a number of seconds without a step, or off (the default).",
    )
    if "PET_MAX_RESTARTS" not in os.environ:
        parser.set_defaults(max_restarts=MAX_RESTARTS)
    return parser


def _parse(arguments: Sequence[str]) -> Namespace:
    complaint = io.StringIO()
    try:
        parser = argument_parser()
        with contextlib.redirect_stderr(complaint):
            return parser.parse_args(list(arguments))
    except SystemExit as end:
        if not end.code:
            raise  # -h was asked for, and answered
        problem = complaint.getvalue().rpartition("error: ")[2].strip()
    except ValueError as wrong_variable:
        problem = f"a PET_* variable cannot be read ({wrong_variable})"
    if "training_script" in problem:
        problem = "the script to run is missing"
    cure = "For example: production-ml launch --nproc-per-node 2 train.py. All flags: production-ml launch -h"
    raise ConfigError("launch", shlex.join(arguments), problem, cure=cure)


def _check_target(given: Namespace) -> None:
    # The script would run in a fork of the launcher; as a process of its own it runs the same way, and safer.
    given.run_path = False
    if given.module and given.no_python:
        raise ConfigError("--module", given.training_script, "cannot go together with --no-python")
    if given.module:
        check_module(given.training_script)
    elif given.no_python:
        check_program(given.training_script)
    else:
        check_script(given.training_script)


def _local_world_size(text: str) -> int:
    try:
        number = determine_local_world_size(text)
    except ValueError as problem:
        raise ConfigError(
            "--nproc-per-node", text, f"must be a number of workers, or one of cpu, gpu, xpu, auto ({problem})"
        ) from None
    if number < 1:
        raise ConfigError("--nproc-per-node", text, "there must be at least 1 worker")
    return int(number)


def _max_nodes(text: str) -> int:
    try:
        smallest, largest = parse_min_max_nnodes(text)
    except (ValueError, RuntimeError):
        raise ConfigError("--nnodes", text, "must be a number of nodes, or MIN:MAX") from None
    if not 0 < smallest <= largest:
        raise ConfigError("--nnodes", text, "must be at least 1, and MIN not above MAX")
    return int(largest)


def _check_meeting_point(given: Namespace) -> None:
    """Without one, every node would wait on its own loopback address for the others, deaf until a timeout."""
    if not given.rdzv_endpoint and not given.master_port and given.master_addr == _LOOPBACK:
        raise ConfigError(
            "--rdzv-endpoint",
            given.rdzv_endpoint,
            f"must be given where --nnodes is {given.nnodes}: the nodes have to find each other",
            cure="For example: --rdzv-backend c10d --rdzv-endpoint first-node:29400 --rdzv-id my-job, on every node.",
        )


def _run_directory(given: Namespace) -> tuple[RunDirectory, str]:
    name = run_name(given.training_script, is_module=given.module)
    if given.run_dir:
        return RunDirectory(Path(given.run_dir).absolute()), name
    root = Path(os.environ.get(RUNS_ROOT_VARIABLE, "runs"))
    # Nodes that share a file system share the run if they were told of the same job.
    run_id = new_run_id() if given.rdzv_id == _NO_RUN_ID else safe_name(given.rdzv_id)
    return RunDirectory((root / name / run_id).absolute()), name


def _config(given: Namespace) -> tuple[LaunchConfig, tuple[str, ...]]:
    for field, value, least in (
        ("--max-restarts", given.max_restarts, 0),
        ("--monitor-interval", given.monitor_interval, 0.001),
        ("--shutdown-timeout", given.shutdown_timeout or 0, 0),
    ):
        if value < least:
            raise ConfigError(field, value, f"must be at least {least}")
    if given.logs_specs is not None:
        cure = "The output of each rank and attempt is in RUN_DIR/logs; --redirects and --log-dir steer it."
        raise ConfigError("--logs-specs", given.logs_specs, "a log class of one's own is not supported", cure=cure)
    shown_log_dir, given.log_dir = given.log_dir, os.devnull  # keeps torchelastic from making a directory in /tmp
    given.master_port = given.master_port or _DEFAULT_MASTER_PORT
    try:
        with _without_thread_warning():
            config, program, program_arguments = config_from_args(given)
    except (ValueError, AssertionError, RuntimeError) as problem:
        raise ConfigError("launch", given.training_script, str(problem)) from problem
    finally:
        given.log_dir = shown_log_dir
    return config, (str(program), *program_arguments)


@contextlib.contextmanager
def _without_thread_warning() -> Iterator[None]:
    """Without the banner that torchrun prints when it sets OMP_NUM_THREADS; we set it for the workers only."""
    is_unset = THREADS_VARIABLE not in os.environ
    os.environ.setdefault(THREADS_VARIABLE, "1")
    try:
        yield
    finally:
        if is_unset:
            del os.environ[THREADS_VARIABLE]


def _signals(names: str) -> tuple[signal.Signals, ...]:
    try:
        return tuple(signal.Signals[name.strip()] for name in names.split(","))
    except KeyError as unknown:
        raise ConfigError("--signals-to-handle", names, f"{unknown} is no signal") from None


def _shown(given: Namespace, local_world_size: int) -> frozenset[tuple[int, int]]:
    """Everything but what `--redirects` sends to files only, and the ranks that `--local-ranks-filter` leaves out."""
    redirects = to_map(Std.from_str(given.redirects), local_world_size)
    tees = to_map(Std.from_str(given.tee), local_world_size)
    wanted = {int(rank) for rank in given.local_ranks_filter.split(",")} if given.local_ranks_filter else None
    return frozenset(
        (local_rank, stream)
        for local_rank in range(local_world_size)
        for stream in (1, 2)
        if (wanted is None or local_rank in wanted)
        and (tees[local_rank] & stream or not redirects[local_rank] & stream)
    )
