"""What the agent needs for all attempts: a pulse for each worker, and a watch while they run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from torch.distributed import Store  # type: ignore[attr-defined] # exported by a star import

from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles
from production_ml.fault_tolerance.launcher.hang.nodes import NodesInStore, NoOtherNodes
from production_ml.fault_tolerance.launcher.hang.questions import WatchedWorker
from production_ml.fault_tolerance.launcher.hang.watch import AttemptWatch, Tell
from production_ml.fault_tolerance.launcher.rendezvous import Meeting
from production_ml.fault_tolerance.pulse import PULSE_VARIABLE, Pulse
from production_ml.fault_tolerance.recovery.hang.answering import AnswerFiles
from production_ml.fault_tolerance.recovery.hang.limits import HangLimits, StepTimes

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a directory of our own, with a random name, is made in it


class HangWatches:
    """Makes pulses and watches them, attempt after attempt.

    Args:
        limits: None watches nothing, and makes no pulses.
        log_directory: Where each attempt's stacks are kept.
        tell: The launcher's journal.
    """

    def __init__(self, limits: HangLimits | None, log_directory: Path, tell: Tell) -> None:
        self._limits = limits
        self._log_directory = log_directory
        self._tell = tell
        self._times: dict[int, StepTimes] = {}
        self._watch: AttemptWatch | None = None
        self._root: Path | None = None

    def environment(self, attempt: int, local_rank: int) -> dict[str, str]:
        """Make the worker's pulse, and the variable that names it."""
        if self._limits is None:
            return {}
        path = self._pulse(attempt, local_rank)
        try:
            path.parent.mkdir(exist_ok=True)
            Pulse(path).close()
        except OSError:  # no memory for a few bytes: train without
            return {}
        return {PULSE_VARIABLE: str(path)}

    def begin(self, meeting: Meeting, ranks: Mapping[int, int], pids: Mapping[int, int], store: Store | None) -> None:
        """Watch the workers of an attempt; `ranks` and `pids` are by local rank."""
        self.end()
        if self._limits is None:
            return
        workers = [
            WatchedWorker(ranks[local_rank], local_rank, pid, AnswerFiles(self._pulse(meeting.attempt, local_rank)))
            for local_rank, pid in pids.items()
        ]
        if not all(worker.files.pulse.exists() for worker in workers):
            return
        for worker in workers:
            self._times.setdefault(worker.local_rank, StepTimes(self._limits)).begin_attempt()
        is_alone = store is None or meeting.group_world_size == 1
        self._watch = AttemptWatch(
            workers,
            step_times=self._times,
            limits=self._limits,
            files=AttemptFiles(self._log_directory, meeting.attempt),
            tell=self._tell,
            make_other_nodes=lambda wait: (
                NoOtherNodes()
                if is_alone or store is None
                else NodesInStore(store, node=meeting.group_rank, node_count=meeting.group_world_size, wait=wait)
            ),
        )
        self._watch.start()

    def end(self) -> None:
        """The workers are being stopped: their silence means nothing from now on."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def close(self) -> None:
        """Give the pulses' memory back."""
        self.end()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def _pulse(self, attempt: int, local_rank: int) -> Path:
        if self._root is None:
            with suppress(OSError):
                self._root = Path(tempfile.mkdtemp(prefix="production-ml-", dir=_MEMORY))
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="production-ml-"))
        return self._root / f"attempt-{attempt}" / f"local-rank-{local_rank}.pulse"
