"""One attempt's workers as torchelastic ranked them, turned into commands: what to run, where, with which output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from torch.distributed.elastic.agent.server.api import Worker, WorkerSpec
from torch.distributed.elastic.utils.api import macros
from torch.numa.binding import _maybe_wrap_command_args_with_numa_binding

from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles
from production_ml.fault_tolerance.launcher.environment import AttemptFacts, WorkerPlace, worker_environment
from production_ml.fault_tolerance.launcher.line_filters import LineFilter
from production_ml.fault_tolerance.launcher.plan import LaunchPlan
from production_ml.fault_tolerance.launcher.rendezvous import Meeting
from production_ml.fault_tolerance.launcher.worker_processes import WorkerCommand


class AttemptWorkers:
    """Makes the commands of the workers that this node runs in one attempt, and the directory for their output."""

    def __init__(self, plan: LaunchPlan, spec: WorkerSpec, meeting: Meeting, *, restart_count: int) -> None:
        self._plan = plan
        self._spec = spec
        self._meeting = meeting
        self._files = AttemptFiles(plan.log_directory, meeting.attempt)
        with contextlib.suppress(OSError):  # a disk that has filled up since the launch costs logs, not the restart
            self._files.directory.mkdir(parents=True, exist_ok=True)
        self._facts = AttemptFacts(
            attempt=meeting.attempt,
            restart_count=restart_count,
            max_restarts=spec.max_restarts,
            run_id=spec.rdzv_handler.get_run_id(),
            run_dir=plan.run.path,
            launcher_pid=os.getpid(),
            store_host=meeting.store_host,
            store_port=meeting.store_port,
        )

    def environment(self, worker: Worker) -> dict[str, str | None]:
        """The worker's environment, but for LOCAL_RANK and its devices."""
        place = WorkerPlace(
            rank=worker.global_rank,
            local_rank=worker.local_rank,
            world_size=worker.world_size,
            local_world_size=self._spec.local_world_size,
            group_rank=self._meeting.group_rank,
            group_world_size=self._meeting.group_world_size,
            role=self._spec.role,
            role_rank=worker.role_rank,
            role_world_size=worker.role_world_size,
        )
        error_file = self._files.error(worker.global_rank)
        return {**worker_environment(place, self._facts, error_file=error_file, environ=os.environ)}

    def command(self, worker: Worker, environment: dict[str, str | None]) -> WorkerCommand:
        """What the worker runs."""
        arguments = tuple(macros.substitute(list(self._plan.command), str(worker.local_rank)))
        return WorkerCommand(
            local_rank=worker.local_rank,
            arguments=_maybe_wrap_command_args_with_numa_binding(
                arguments, gpu_index=worker.local_rank, numa_options=self._plan.config.numa_options
            ),
            environment={name: value for name, value in environment.items() if value is not None},
            stdout=self._files.stdout(worker.global_rank),
            stderr=self._files.stderr(worker.global_rank),
        )

    def line_filters(self, workers: Sequence[Worker]) -> list[LineFilter]:
        """What copies the lines that the user wants to see together."""
        config = self._plan.config
        stdouts = {worker.local_rank: self._files.stdout(worker.global_rank) for worker in workers}
        stderrs = {worker.local_rank: self._files.stderr(worker.global_rank) for worker in workers}
        return [
            LineFilter(stdouts, self._files.filtered("stdout"), config.duplicate_stdout_filters or []),
            LineFilter(stderrs, self._files.filtered("stderr"), config.duplicate_stderr_filters or []),
        ]
