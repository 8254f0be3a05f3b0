"""The elastic agent: torchelastic's, with workers that are watched without polling and recorded when they fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles
from production_ml.fault_tolerance.launcher.attempt_workers import AttemptWorkers
from production_ml.fault_tolerance.launcher.failures import WorkerFailure, explain, root_cause_first, signal_name
from production_ml.fault_tolerance.launcher.guardian import Guardian
from production_ml.fault_tolerance.launcher.hang import HangWatches
from production_ml.fault_tolerance.launcher.interruption import Interruption
from production_ml.fault_tolerance.launcher.journal import LaunchJournal
from production_ml.fault_tolerance.launcher.line_filters import LineFilter
from production_ml.fault_tolerance.launcher.output import OutputRelay
from production_ml.fault_tolerance.launcher.plan import LaunchPlan
from production_ml.fault_tolerance.launcher.rendezvous import AttemptRendezvous
from production_ml.fault_tolerance.launcher.worker_processes import WorkerProcesses

SURVIVOR_GRACE_SECONDS = 5.0
"""How long a worker may take to end after a peer has failed. Its collectives can only hang, so torchrun's 30 s are lost
time; what it may still do alone, such as closing a file, is done by then."""
_AGENT_LOOP_SECONDS = 0.001


class LaunchAgent(LocalElasticAgent):
    """Runs the workers of this node through all attempts.

    The rendezvous, the restart budget, changes of membership and the barrier at the end are torchelastic's. Starting,
    watching and stopping workers is ours.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        plan: LaunchPlan,
        *,
        rendezvous: AttemptRendezvous,
        journal: LaunchJournal,
        interruption: Interruption,
        guardian: Guardian,
        hangs: HangWatches,
    ) -> None:
        self._grace_seconds = plan.config.shutdown_timeout or 0
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), shutdown_timeout=self._grace_seconds)
        # The agent's loop sleeps before each look; the wait of this length is in the look, and ends with a worker.
        self._look_seconds = spec.monitor_interval
        spec.monitor_interval = _AGENT_LOOP_SECONDS
        self._plan = plan
        self._attempts = rendezvous
        self._journal = journal
        self._interruption = interruption
        self._guardian = guardian
        self._hangs = hangs
        self._workers: WorkerProcesses | None = None
        self._filters: list[LineFilter] = []

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        with self._interruption.raising():
            super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        spec, meeting = worker_group.spec, self._attempts.meeting
        restart_count = spec.max_restarts - self._remaining_restarts
        attempt = AttemptWorkers(self._plan, spec, meeting, restart_count=restart_count)
        environments = {worker.local_rank: attempt.environment(worker) for worker in worker_group.workers}
        for local_rank, environment in environments.items():
            self._set_local_rank_env(environment, local_rank, spec)
            environment.update(self._hangs.environment(meeting.attempt, local_rank))
        self._setup_local_watchdog(environments)  # type: ignore[arg-type] # adds a variable
        self._setup_healthcheck()
        commands = [attempt.command(worker, environments[worker.local_rank]) for worker in worker_group.workers]
        self._workers = WorkerProcesses(commands, OutputRelay(self._plan.is_shown), self._guardian.guard)
        self._filters = attempt.line_filters(worker_group.workers)
        pids = self._workers.pids
        self._journal.attempt_started(meeting.attempt, world_size=worker_group.workers[0].world_size, pids=pids)
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self._hangs.begin(meeting, ranks, pids, self._store)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        workers = self._running_workers()
        with self._interruption.raising():
            workers.wait_for_exit(self._look_seconds)
        exit_codes = workers.exit_codes()
        failed = {local_rank: code for local_rank, code in exit_codes.items() if code != 0}
        if failed:
            return self._failed(worker_group, failed)
        if len(exit_codes) < len(worker_group.workers):
            return RunResult(state=WorkerState.HEALTHY)
        return RunResult(
            state=WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in worker_group.workers}
        )

    def _failed(self, worker_group: WorkerGroup, exit_codes: Mapping[int, int]) -> RunResult:
        # Only those that ended by themselves: the peers are still to be stopped, and that is no failure of theirs.
        failures = root_cause_first(
            self._failure(worker, exit_codes[worker.local_rank])
            for worker in worker_group.workers
            if worker.local_rank in exit_codes
        )
        self._journal.workers_failed(failures)
        if self._remaining_restarts > 0:
            self._journal.restart_scheduled(
                self._attempts.meeting.attempt + 1, restarts_left=self._remaining_restarts - 1
            )
        return RunResult(
            state=WorkerState.FAILED,
            failures={
                # The error file was read by us, who bear with a damaged one.
                failure.rank: ProcessFailure(failure.local_rank, failure.pid, failure.exit_code, error_file="")
                for failure in failures
            },
        )

    def _failure(self, worker: Worker, exit_code: int) -> WorkerFailure:
        attempt = self._attempts.meeting.attempt
        stderr = self._running_workers().output.stderr_tail(worker.local_rank)
        error_file = AttemptFiles(self._plan.log_directory, attempt).error(worker.global_rank)
        reason, traceback = explain(exit_code, error_file=error_file, stderr=stderr)
        return WorkerFailure(
            attempt=attempt,
            rank=worker.global_rank,
            local_rank=worker.local_rank,
            pid=worker.id,
            exit_code=exit_code,
            signal=signal_name(exit_code),
            reason=reason,
            traceback=traceback,
            stderr_tail=tuple(stderr),
        )

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002 - torchelastic's signature
        self._shutdown(timeout=int(min(SURVIVOR_GRACE_SECONDS, self._grace_seconds)))

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        super()._shutdown(death_sig, timeout)
        self._hangs.end()
        if self._workers is None:
            return
        if self._interruption.received is not None:
            self._journal.interrupted(self._interruption.received.name, grace_seconds=timeout)
        # Ctrl-C asks for an end; a KeyboardInterrupt's traceback from every rank would bury what was said before.
        how = signal.SIGTERM if death_sig in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) else death_sig
        self._workers.stop(how, grace_seconds=timeout, is_hurried=lambda: self._interruption.is_hurried)
        self._workers = None
        for line_filter in self._filters:
            line_filter.close()

    def _exit_barrier(self) -> None:
        with self._interruption.raising():
            super()._exit_barrier()  # type: ignore[no-untyped-call]

    def _construct_event(self, state: str, source: EventSource, *arguments: Any, **named: Any) -> Event:
        # torchelastic asks the name server for this host's full name for each event, kept or not: with a slow name
        # server, seconds of every restart.
        if self._worker_group.spec.event_log_handler == "null":
            return Event(f"torchelastic.worker.status.{state}", source=source)
        return super()._construct_event(state, source, *arguments, **named)

    def _running_workers(self) -> WorkerProcesses:
        assert self._workers is not None, "torchelastic looks at workers only after it has started them"  # noqa: S101
        return self._workers
