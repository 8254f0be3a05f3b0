"""Where a node's exporter is found, and the lock under which one comes or goes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from production_ml.monitoring.run_directory import RunDirectory, process_start

_LOCK_TIMEOUT_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running exporter."""

    host: str
    port: int | None
    """None where it serves nothing and only feeds sinks."""
    pid: int
    start: int
    """With the pid, names the process for good; see `process_start`."""

    @property
    def url(self) -> str | None:
        """What Prometheus scrapes."""
        return f"http://{self.host}:{self.port}/metrics" if self.port is not None else None

    @property
    def is_alive(self) -> bool:
        """Whether that process still runs."""
        return self.start != 0 and process_start(self.pid) == self.start


def read_endpoint(run: RunDirectory, node: str) -> Endpoint | None:
    """The node's exporter, None where none runs: what a dead one has left behind does not count."""
    try:
        endpoint = Endpoint(**json.loads(run.exporter_endpoint(node).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return endpoint if endpoint.is_alive else None


def write_endpoint(run: RunDirectory, node: str, endpoint: Endpoint) -> None:
    """Tell the later monitors of the node; the caller holds the lock."""
    path = run.exporter_endpoint(node)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(endpoint)))
    temporary.replace(path)


@contextmanager
def start_lock(run: RunDirectory, node: str) -> Iterator[None]:
    """Hold the lock of those who start an exporter or end one; it is held for milliseconds.

    Raises:
        OSError: The filesystem has no locks, or (TimeoutError) a process that holds it has been stopped.
    """
    descriptor = os.open(run.exporter_start_lock(node), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{run.exporter_start_lock(node)} is held by another process") from None
                time.sleep(_LOCK_POLL_SECONDS)
            else:
                break
        yield
    finally:
        os.close(descriptor)
