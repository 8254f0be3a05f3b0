"""The exporter's own process: it serves metrics and feeds sinks until the run is over, and then makes way."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from production_ml.monitoring.exporter.endpoint import read_endpoint, start_lock
from production_ml.monitoring.exporter.sink_feeder import POLL_SECONDS, SinkFeeder
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_watch import RunWatch
from production_ml.monitoring.sinks import SINKS, Sink
from production_ml.monitoring.sinks.prometheus import PrometheusSink

_LAST_FEED_SECONDS = 30.0
_logger = logging.getLogger(__name__)


class MetricsServer:
    """Serves a registry on a socket that listens already."""

    def __init__(self, registry: CollectorRegistry, listener: socket.socket) -> None:
        handler = MetricsHandler.factory(registry)
        self._server = ThreadingHTTPServer(listener.getsockname()[:2], handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        serve = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics-http", daemon=True)
        serve.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the exporter until the run is over."""
    parser = argparse.ArgumentParser(prog="python -m production_ml.monitoring.exporter", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--sinks", default="prometheus")
    parser.add_argument("--owner-pid", type=int, required=True)
    parser.add_argument("--owner-start", type=int, required=True)
    parser.add_argument("--listen-fd", type=int)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run = RunDirectory(given.run_dir)
    watch = RunWatch(run, owner_pid=given.owner_pid, owner_start=given.owner_start)
    serve_run(run, watch, _load(given.sinks.split(",")), given.listen_fd)


def serve_run(run: RunDirectory, watch: RunWatch, sinks: dict[str, Sink], listen_fd: int | None) -> None:
    """Serve and feed until `watch` says that the run is over, or SIGTERM comes."""
    stop, over = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = None
    prometheus = sinks.get("prometheus")
    if listen_fd is not None and isinstance(prometheus, PrometheusSink):
        server = MetricsServer(prometheus.registry, socket.socket(fileno=listen_fd))
    with _turn_to_feed(run):
        feeders = [SinkFeeder(name, sink, run, over) for name, sink in sinks.items()]
        for feeder in feeders:
            feeder.start()
        while True:
            if stop.wait(POLL_SECONDS) or _is_superseded(run):
                stop.set()
            if (stop.is_set() or watch.is_over()) and make_way(run, watch, server, stop):
                break
        over.set()
        for feeder in feeders:
            feeder.join(timeout=_LAST_FEED_SECONDS)


def _load(names: Sequence[str]) -> dict[str, Sink]:
    sinks: dict[str, Sink] = {}
    for name in names:
        try:
            sinks[name] = SINKS.load(name)()
        except Exception:  # the plug-in boundary: a kind that is not installed well must not take the others with it
            _logger.exception("sink %r cannot be used; the others are fed", name)
    return sinks


@contextlib.contextmanager
def _turn_to_feed(run: RunDirectory) -> Iterator[None]:
    """Wait for a predecessor that still hands its last records to a slow sink: a sink has one feeder at a time."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a filesystem without locks has no exporter to wait for either
            lock = held.enter_context(run.exporter_lock(socket.gethostname()).open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_superseded(run: RunDirectory) -> bool:
    """Whether another exporter is the node's: a worker was killed before it could tell the others of this one."""
    found = read_endpoint(run, socket.gethostname())
    return found is not None and found.pid != os.getpid()


def make_way(run: RunDirectory, watch: RunWatch, server: MetricsServer | None, stop: threading.Event) -> bool:
    """Free the port and the endpoint file, unless the run goes on after all.

    A monitor writes to the log before it asks for the lock. So either it gets the lock first, and is seen here, or
    it finds neither this exporter nor its port taken, and starts the next one.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # the run directory may be gone
            held.enter_context(start_lock(run, socket.gethostname()))
        if not stop.is_set() and not watch.is_over():
            return False
        own = read_endpoint(run, socket.gethostname())
        if own is not None and own.pid == os.getpid():
            with contextlib.suppress(OSError):  # a file that stays behind misleads nobody: this process is not alive
                run.exporter_endpoint(socket.gethostname()).unlink(missing_ok=True)
        if server is not None:
            server.close()
    return True
