"""Whether a run still lives on this node, by its log and by the processes that are named there."""

from __future__ import annotations

import logging
import socket

from production_ml.monitoring.run_directory import RunDirectory, process_start
from production_ml.monitoring.run_log import EventRecord, RunLogFollower, Source

CLOSED_EVENT = "monitor_closed"
_PIECE_BYTES = 8 << 20
_LOOKS_UNTIL_GONE = 10
_logger = logging.getLogger(__name__)


class RunWatch:
    """Under a launcher a run ends with the launcher; alone, when the script closes its monitors or ends.

    Args:
        run: The run to watch.
        node: The host whose processes count; this one by default.
        owner_pid: An owner that counts although the log does not name it (yet), which a full disk can cause.
        owner_start: When that owner started, as `process_start` tells.
    """

    def __init__(
        self, run: RunDirectory, node: str | None = None, *, owner_pid: int | None = None, owner_start: int = 0
    ) -> None:
        self._run = run
        self._node = node or socket.gethostname()
        self._first_owners = set() if owner_pid is None else {(owner_pid, owner_start)}
        self._follower = RunLogFollower(run)
        self._closed: set[Source] = set()
        self._looks_without_directory = 0
        self.failures = 0

    def is_over(self) -> bool:
        """Everything that wrote to the run on this node is done, or the run directory is gone for good.

        A network disk that answers with an error for a while, or that for a moment knows no such directory, ends no
        run: the processes are judged by what was read before.
        """
        try:
            self._read_on()
        except OSError as problem:
            self.failures += 1
            if self.failures.bit_count() == 1:  # the 1st, 2nd, 4th, …: an outage of weeks must not fill the disk
                text = "%s cannot be looked at, %d time(s) by now (%s). The run goes on as far as is known."
                _logger.warning(text, self._run.log_directory, self.failures, problem.strerror)
        if self._looks_without_directory >= _LOOKS_UNTIL_GONE:
            return True
        here = {source for source in self._follower.sources() if source.node == self._node}
        owners = self._first_owners | {(source.owner_pid, source.owner_start) for source in here}
        return bool(owners) and all(self._has_ended(*owner, here) for owner in owners)

    def _read_on(self) -> None:
        if not self._run.log_directory.exists():
            self._looks_without_directory += 1
            return
        self._looks_without_directory = 0
        while records := self._follower.poll(_PIECE_BYTES):
            for sourced in records:
                if isinstance(sourced.record, EventRecord) and sourced.record.name == CLOSED_EVENT:
                    self._closed.add(sourced.source)

    def _has_ended(self, pid: int, start: int, here: set[Source]) -> bool:
        if start == 0 or process_start(pid) != start:
            return True
        # A launcher may restart workers that have closed, so only a script that is its own owner ends by closing.
        # Children that it forked and that logged too do not keep the run alive.
        its_own = {s for s in here if (s.pid, s.owner_start) == (pid, start) and s.role == "rank"}
        return bool(its_own) and its_own <= self._closed
