"""The exporter process: one per run and node, it reads the run log and feeds the sinks, outside of training.

It is handed a locked file and a listening socket by the monitor that starts it, so that there is no moment in which
two exporters, or a port conflict, are possible. It ends when every process that the run depends on has ended.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client.exposition import MetricsHandler

from production_ml.monitoring.run_directory import RunDirectory, process_start
from production_ml.monitoring.run_log import EventRecord, RunLogFollower, Source, SourcedRecord
from production_ml.monitoring.sinks import SINKS, Sink
from production_ml.monitoring.sinks.prometheus import PrometheusSink

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0
CLOSED_EVENT = "monitor_closed"
_PORTS_TRIED = 100
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the run's metrics are served on this node."""

    host: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/metrics"


def ensure_exporter(run: RunDirectory, *, host: str, port: int, sinks: tuple[str, ...]) -> Endpoint | None:
    """Start the exporter of this run and node unless it is there already.

    Returns:
        Where it serves, or None where it could not be started; training goes on without it.
    """
    node = socket.gethostname()
    lock = os.open(run.exporter_lock(node), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return read_endpoint(run.exporter_endpoint(node))
    except OSError as problem:
        os.close(lock)
        _logger.warning(
            "%s: files there cannot be locked (%s), so no exporter runs: the run log is written, but not exported.",
            run.path,
            problem.strerror,
        )
        return None
    try:
        with _listen(host, port) as listener:
            return _spawn(run, node, lock, listener, sinks)
    finally:
        os.close(lock)


def read_endpoint(path: Path) -> Endpoint | None:
    """What a running exporter wrote about itself, None while there is none."""
    try:
        return Endpoint(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _listen(host: str, wished: int) -> socket.socket:
    for port in (*range(wished, wished + _PORTS_TRIED), 0):
        # SO_REUSEADDR is set, so that a port in TIME_WAIT counts as free; one with a live listener does not.
        try:
            listener = socket.create_server((host, port))
        except OSError:
            continue
        if port != wished:
            _logger.warning(
                "metrics port %d on %s is in use; metrics are served at http://%s:%d/metrics instead. "
                "Training goes on. Point Prometheus there, or give metrics_port= a free port.",
                wished,
                host,
                host,
                listener.getsockname()[1],
            )
        return listener
    raise OSError(f"no port on {host} can be listened on")


def _spawn(run: RunDirectory, node: str, lock: int, listener: socket.socket, sinks: tuple[str, ...]) -> Endpoint:
    command = [sys.executable, "-m", "production_ml.monitoring.exporter", str(run.path), "--sinks", ",".join(sinks)]
    command += ["--lock-fd", str(lock), "--listen-fd", str(listener.fileno())]
    with run.exporter_output(node).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own module, run by our own interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock, listener.fileno()),
            start_new_session=True,  # what stops the workers' process group must not stop the exporter
        )
    # The exporter outlives this process on purpose; Popen would warn that its child was not waited for.
    process.returncode = 0
    host, port = listener.getsockname()[:2]
    endpoint = Endpoint(host, port, process.pid)
    temporary = run.exporter_endpoint(f".{node}-{os.getpid()}")
    temporary.write_text(json.dumps({"host": host, "port": port, "pid": process.pid}))
    temporary.replace(run.exporter_endpoint(node))
    return endpoint


class SinkFeeder(threading.Thread):
    """One sink, one thread, one position in the log: a sink that fails or hangs does so alone."""

    def __init__(self, name: str, sink: Sink, run: RunDirectory, over: threading.Event) -> None:
        super().__init__(name=f"sink-{name}", daemon=True)
        self._sink = sink
        self._sink_name = name
        self._run = run
        self._follower = RunLogFollower(run)
        self._over = over
        self._opened = False
        self._failures = 0
        self._pending: list[SourcedRecord] = []

    def run(self) -> None:
        """Feed until the run is over and all of it was taken."""
        while True:
            last = self._over.is_set()
            fine = self._feed()
            if last:
                break
            self._over.wait(POLL_SECONDS if fine else RETRY_SECONDS)
        self._sink.close()

    def _feed(self) -> bool:
        try:
            if not self._opened:
                self._sink.open(self._run, self._run.identity())
                self._opened = True
            self._pending += self._follower.poll()
            if self._pending:
                self._sink.write(self._pending)
        except Exception as problem:  # noqa: BLE001 - the plug-in boundary: any sink may fail, none may spread it
            self._failures += 1
            _logger.warning(
                "sink %r failed %d time(s) (%r); the log keeps all, it is tried again.",
                self._sink_name,
                self._failures,
                problem,
            )
            return False
        self._pending = []
        return True


class RunWatch:
    """Whether the run on this node still lives, by its log and by the processes named there."""

    def __init__(self, run: RunDirectory, node: str) -> None:
        self._follower = RunLogFollower(run)
        self._node = node
        self._closed: set[tuple[int, int]] = set()

    def is_over(self) -> bool:
        """Every writer of this node has closed its log or lost its owner."""
        for sourced in self._follower.poll():
            if isinstance(sourced.record, EventRecord) and sourced.record.name == CLOSED_EVENT:
                self._closed.add((sourced.source.pid, sourced.source.attempt))
        here = [source for source in self._follower.sources() if source.node == self._node]
        return bool(here) and all(self._has_ended(source) for source in here)

    def _has_ended(self, source: Source) -> bool:
        owner_is_gone = process_start(source.owner_pid) != source.owner_start
        # Under a launcher a closed monitor may be followed by a restart; alone, it is the end.
        return owner_is_gone or (source.pid == source.owner_pid and (source.pid, source.attempt) in self._closed)


def main(arguments: list[str] | None = None) -> None:
    """Run the exporter until the run is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--sinks", default="prometheus")
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run = RunDirectory(given.run_dir)
    over = threading.Event()
    sinks: dict[str, Sink] = {name: SINKS.load(name)() for name in given.sinks.split(",")}
    feeders = [SinkFeeder(name, sink, run, over) for name, sink in sinks.items()]
    server = _serve(sinks.get("prometheus"), given.listen_fd)
    for feeder in feeders:
        feeder.start()
    watch = RunWatch(run, socket.gethostname())
    while not watch.is_over() and not stop.wait(POLL_SECONDS):
        pass
    over.set()
    for feeder in feeders:
        feeder.join(timeout=30)
    if server is not None:
        server.shutdown()


def _serve(sink: Any, descriptor: int) -> ThreadingHTTPServer | None:
    listener = socket.socket(fileno=descriptor)
    if not isinstance(sink, PrometheusSink):
        listener.close()
        return None
    server = ThreadingHTTPServer(
        listener.getsockname()[:2], MetricsHandler.factory(sink.registry), bind_and_activate=False
    )
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, name="metrics-http", daemon=True).start()
    return server


if __name__ == "__main__":
    main()
