"""Feeding one sink from the run log, so that its failures stay its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import RunLogFollower, SourcedRecord
from production_ml.monitoring.sinks.base import Sink

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0
_PIECE_BYTES = 8 << 20
_logger = logging.getLogger(__name__)


class SinkFeeder(threading.Thread):
    """One sink, one thread, one position in the log: a sink that fails or hangs does so alone.

    Args:
        name: The sink's kind, for messages.
        sink: Whom to feed.
        run: The run whose log is read.
        over: Set when the run is over; the thread ends once the sink has all of the log.
        poll_seconds: How often to look for new records.
        retry_seconds: How long to leave a sink alone that failed.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        run: RunDirectory,
        over: threading.Event,
        *,
        poll_seconds: float = POLL_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        super().__init__(name=f"sink-{name}", daemon=True)
        self._sink = sink
        self._sink_name = name
        self._run = run
        self._over = over
        self._poll_seconds = poll_seconds
        self._retry_seconds = retry_seconds
        self._follower = RunLogFollower(run)
        self._is_open = False
        self._pending: list[SourcedRecord] = []
        self.failures = 0

    def run(self) -> None:
        """Feed until the run is over and the sink has taken all of it."""
        while True:
            is_last = self._over.is_set()  # asked before reading, so that what was written until then is read
            if not self._call(self._feed):
                # Not waiting for `over`: a sink that fails at the end of the run is still left alone for a while.
                time.sleep(self._retry_seconds)
            elif is_last:
                break
            else:
                self._over.wait(self._poll_seconds)
        self._call(self._sink.close)

    def _feed(self) -> None:
        if not self._is_open:
            self._sink.open(self._run, self._run.identity())
            self._is_open = True
        # What the sink did not take is offered again before more is read: a failing sink costs no memory.
        while self._pending or (records := self._follower.poll(_PIECE_BYTES)):
            self._pending = self._pending or records
            self._sink.write(self._pending)
            self._pending = []

    def _call(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as problem:  # noqa: BLE001 - the plug-in boundary: any sink may fail, none may spread it
            self.failures += 1
            if self.failures.bit_count() == 1:  # the 1st, 2nd, 4th, …: an outage of weeks must not fill the disk
                text = "sink %r failed, %d time(s) by now (%r). The run log keeps everything; it is tried again."
                _logger.warning(text, self._sink_name, self.failures, problem)
            return False
        return True
