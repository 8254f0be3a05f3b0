"""The monitor's side of the exporter: find the one that runs, else choose a port and start one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from production_ml.core.errors import ConfigError
from production_ml.monitoring.exporter.endpoint import Endpoint, read_endpoint, start_lock, write_endpoint
from production_ml.monitoring.run_directory import RunDirectory, process_start

_PORTS_TRIED = 100
_PORT_IS_TAKEN = (errno.EADDRINUSE, errno.EACCES)
# The exporter must be nobody's child: a launcher that stops a worker with its children would take it along, and
# a script that goes on after its run would keep a zombie.
_DETACH = """
import os, sys
pid = os.fork()
if pid:
    os.write(1, str(pid).encode())
else:
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
"""
_logger = logging.getLogger(__name__)


def check_address(host: str, port: int | None) -> None:
    """Refuse what cannot be served on whatever other programs do.

    Raises:
        ConfigError: `port` is none, or `host` is no IPv4 address or name of this machine.
    """
    if port is None:
        return
    if not 0 <= port < 65536:
        raise ConfigError("metrics_port", port, "must be a port, 0 to 65535, or None for no exporter")
    try:
        socket.create_server((host, 0)).close()
    except OSError as problem:
        raise ConfigError(
            "metrics_host",
            host,
            f"cannot be served on ({problem.strerror})",
            cure="Give an IPv4 address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them.",
        ) from problem


def ensure_exporter(
    run: RunDirectory, *, host: str, port: int, sinks: tuple[str, ...], owner_pid: int
) -> Endpoint | None:
    """Start the exporter of this run and node unless it is there already.

    Returns:
        Where it is, or None where it could not be started; training goes on without it.
    """
    node = socket.gethostname()
    try:
        with start_lock(run, node):
            return read_endpoint(run, node) or _start(run, node, host, port, sinks, owner_pid)
    except OSError as problem:
        _logger.warning(
            "%s: no exporter could be started (%s). Training goes on and the run log is kept, but metrics are not "
            "served, and no other sink is fed.",
            run.path,
            problem,
        )
        return None


def _start(run: RunDirectory, node: str, host: str, port: int, sinks: tuple[str, ...], owner_pid: int) -> Endpoint:
    command = [str(run.path), "--sinks", ",".join(sinks)]
    command += ["--owner-pid", str(owner_pid), "--owner-start", str(process_start(owner_pid))]
    if "prometheus" not in sinks:
        return _spawn(run, node, command, Endpoint(host, None, 0, 0), ())
    # The listening socket is handed over, so there is no moment in which the port could go to another.
    with _listen(host, port) as listener:
        descriptor = listener.fileno()
        command += ["--listen-fd", str(descriptor)]
        return _spawn(run, node, command, Endpoint(host, listener.getsockname()[1], 0, 0), (descriptor,))


def _listen(host: str, wished: int) -> socket.socket:
    for port in (*range(wished, min(wished + _PORTS_TRIED, 65536)), 0):
        try:
            # It sets SO_REUSEADDR, so that a port in TIME_WAIT counts as free; one with a live listener does not.
            listener = socket.create_server((host, port))
        except OSError as problem:
            if problem.errno not in _PORT_IS_TAKEN:
                raise
            continue
        if port != wished:
            _logger.warning(
                "metrics port %d on %s is in use or not allowed; metrics are served at http://%s:%d/metrics instead. "
                "Training goes on. Point Prometheus there, or give metrics_port= a free port.",
                wished,
                host,
                host,
                listener.getsockname()[1],
            )
        return listener
    raise OSError(errno.EADDRINUSE, f"no port on {host} is free")


def _spawn(
    run: RunDirectory, node: str, arguments: list[str], place: Endpoint, descriptors: tuple[int, ...]
) -> Endpoint:
    # -P: what lies in the working directory is not imported. The exporter finds the modules that this process finds.
    exporter = [sys.executable, "-P", "-m", "production_ml.monitoring.exporter", *arguments]
    modules = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    with run.exporter_output(node).open("ab") as output:
        detached = subprocess.run(  # noqa: S603 - our own module, run by our own interpreter
            [sys.executable, "-I", "-S", "-c", _DETACH, *exporter],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": modules},
            start_new_session=True,  # what stops the workers' process group must not stop the exporter
            check=False,
        )
    if not detached.stdout.isdigit():
        raise OSError(f"{sys.executable} ended with exit code {detached.returncode}, see {run.exporter_output(node)}")
    pid = int(detached.stdout)
    endpoint = Endpoint(place.host, place.port, pid, process_start(pid))
    try:
        write_endpoint(run, node, endpoint)
    except OSError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)  # nobody would find it, and the next monitor would start a second one
        raise
    return endpoint
