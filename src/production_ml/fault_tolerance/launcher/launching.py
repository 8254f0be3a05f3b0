"""`production-ml launch` as a function: plan, run the agent, and say how it ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.api import logger as agent_logger
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from production_ml.core.errors import ExitCode, InputFileError, LaunchError, ProductionMLError
from production_ml.fault_tolerance.launcher.agent import LaunchAgent
from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles, next_attempt
from production_ml.fault_tolerance.launcher.failures import advice
from production_ml.fault_tolerance.launcher.guardian import Guardian
from production_ml.fault_tolerance.launcher.hang import HangWatches
from production_ml.fault_tolerance.launcher.interruption import Interruption
from production_ml.fault_tolerance.launcher.journal import LaunchJournal, describe, say_nothing
from production_ml.fault_tolerance.launcher.plan import LaunchPlan, parse_arguments
from production_ml.fault_tolerance.launcher.rendezvous import FreshStoreRendezvous, SingleNodeRendezvous
from production_ml.fault_tolerance.launcher.terminal import say_on_stderr
from production_ml.monitoring.run_directory import RunIdentity

_SIGNAL_BASE = 128
_STDERR_LINES_SHOWN = 20
_logger = logging.getLogger(__name__)


def launch(arguments: Sequence[str]) -> int:
    """Start the workers, restart them when one fails, and return when they are done.

    Call it in the main thread: only there can it handle SIGINT and SIGTERM.

    Args:
        arguments: As on the command line: torchrun's flags, `--run-dir` and `--quiet`, the script, its arguments.

    Returns:
        0, or 128 plus the number of the signal that ended the launch (130 for Ctrl-C, 143 for SIGTERM).

    Raises:
        ConfigError: A flag has a value that cannot work. Nothing was started.
        InputFileError: The script is missing, or no script. Nothing was started.
        RunDirectoryError: The run directory cannot be written. Nothing was started.
        LaunchError: The workers failed more often than `--max-restarts` allows, or could not be started.
    """
    plan = parse_arguments(arguments)
    plan.run.create()
    first_attempt = next_attempt(plan.log_directory)
    journal = LaunchJournal(
        plan.run,
        first_attempt=first_attempt,
        world_size=plan.config.min_nodes * plan.config.nproc_per_node,
        say=say_nothing if plan.is_quiet else say_on_stderr,
    )
    interruption = Interruption(lambda number: SignalException(f"launch got {number.name}", number))
    # Its own lines ("Received 2 death signal, shutting down workers") repeat ours in other words.
    agent_logger.setLevel(os.environ.get("LOGLEVEL", "ERROR").upper())
    with interruption.installed(plan.signals):  # to the last line written, which a second Ctrl-C must not cut off
        try:
            _run(plan, journal, interruption, first_attempt)
        except SignalException as stop:
            return _finish(plan, journal, "interrupted", _SIGNAL_BASE + stop.sigval)
        except ProductionMLError as problem:
            _finish(plan, journal, "failed", problem.exit_code)
            raise
        return _finish(plan, journal, "succeeded", ExitCode.OK)


def _run(plan: LaunchPlan, journal: LaunchJournal, interruption: Interruption, first_attempt: int) -> None:
    rendezvous = None
    try:
        rendezvous = _rendezvous(plan, first_attempt)
        hangs = HangWatches(plan.hang_limits, plan.log_directory, journal.happened)
        with closing(Guardian()) as guardian, closing(hangs):
            result = _agent(plan, rendezvous, journal, interruption, guardian, hangs).run()
    except (RendezvousError, DistError) as problem:
        raise _no_meeting(plan, problem) from problem
    except OSError as problem:
        raise LaunchError(
            f"the workers could not be started ({problem.strerror})",
            meaning="Those that were have been stopped.",
            cure="Look at the limits of this machine: ulimit -u, ulimit -n, free memory, free disk.",
        ) from problem
    finally:
        # After a signal it stays open: a shutdown would close it for the other nodes, for good.
        if rendezvous is not None and interruption.received is None:
            rendezvous.shutdown()
    # None: the rendezvous told this node that the others are done.
    if result is not None and result.is_failed():
        raise _defeat(plan, journal)


def _agent(
    plan: LaunchPlan,
    rendezvous: SingleNodeRendezvous | FreshStoreRendezvous,
    journal: LaunchJournal,
    interruption: Interruption,
    guardian: Guardian,
    hangs: HangWatches,
) -> LaunchAgent:
    spec = WorkerSpec(
        role=plan.config.role,
        local_world_size=plan.config.nproc_per_node,
        entrypoint=plan.command[0],
        args=plan.command[1:],
        rdzv_handler=rendezvous,
        max_restarts=plan.config.max_restarts,
        monitor_interval=plan.config.monitor_interval,
        local_addr=plan.config.local_addr,
        event_log_handler=plan.config.event_log_handler,
        numa_options=plan.config.numa_options,
        virtual_local_rank=plan.config.virtual_local_rank,
    )
    return LaunchAgent(
        spec,
        plan,
        rendezvous=rendezvous,
        journal=journal,
        interruption=interruption,
        guardian=guardian,
        hangs=hangs,
    )


def _rendezvous(plan: LaunchPlan, first_attempt: int) -> SingleNodeRendezvous | FreshStoreRendezvous:
    config = plan.config
    if plan.is_single_node:
        return SingleNodeRendezvous(config.run_id, host=plan.host, port=plan.port, first_attempt=first_attempt)
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    return FreshStoreRendezvous(get_rendezvous_handler(parameters), first_attempt=first_attempt)


def _finish(plan: LaunchPlan, journal: LaunchJournal, outcome: str, exit_code: int) -> int:
    identity = RunIdentity(project=plan.name, experiment="launch", run_id=plan.run.path.name)
    try:
        plan.run.claim(identity)  # for a script without a monitor, so that a report can be made of its run too
    except InputFileError as problem:
        _logger.warning("%s; no report can be made of this run.", problem.what)
    journal.finished(outcome, exit_code)
    return exit_code


def _no_meeting(plan: LaunchPlan, problem: Exception) -> LaunchError:
    where = plan.config.rdzv_endpoint or "the rendezvous"
    return LaunchError(
        f"the {plan.config.min_nodes} nodes of this job did not meet at {where} ({problem})",
        meaning="The workers of this node do not run.",
        cure="Start the launcher on every node with the same --rdzv-endpoint and --rdzv-id, and see that the first "
        "node can be reached on that port.",
    )


def _defeat(plan: LaunchPlan, journal: LaunchJournal) -> LaunchError:
    """What a person needs after the last attempt: who failed of what, its last words, and the next thing to do."""
    failure = journal.failures[0]
    files = AttemptFiles(plan.log_directory, failure.attempt)
    restarts = plan.config.max_restarts
    budget = f"--max-restarts {restarts} is used up" if restarts else "--max-restarts 0 allows no other attempt"
    last_words = "\n".join(f"  | {line}" for line in failure.stderr_tail[-_STDERR_LINES_SHOWN:])
    said = f"Its last lines on stderr:\n{last_words}" if last_words else "It wrote nothing to stderr."
    return LaunchError(
        f"attempt {failure.attempt}: {describe(failure)}",
        meaning=f"The job has ended: {budget}. {said}",
        cure=f"{advice(failure)} All it printed: {files.directory}\n"
        f"To go on from the last checkpoint, run the same command with --run-dir {plan.run.path}",
    )
