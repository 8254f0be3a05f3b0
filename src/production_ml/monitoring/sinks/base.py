"""What a metric sink must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import SourcedRecord


class Sink(Protocol):
    """A sink reads; it never sees the training process.

    Each sink has a thread and a reading position of its own in the exporter. One that raises is asked again with the
    same records after a pause; one that is slow falls behind the log and catches up. So a sink needs no queue, no
    retry and no care for training: it writes a batch or raises. A new exporter begins at the start of the log.

    A kind is made without arguments, so that its name alone is enough to start it in another process.
    """

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:
        """Get ready for a run; asked again after an error until it succeeds."""
        ...

    def write(self, records: Sequence[SourcedRecord]) -> None:
        """Take records in time order. May be given records again that an earlier, failed call had."""
        ...

    def close(self) -> None:
        """The run is over and every record has been written."""
        ...
