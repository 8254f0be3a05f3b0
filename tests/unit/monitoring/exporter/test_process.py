"""The exporter serves what it is given, and makes way without a moment in which nobody answers for the run."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from production_ml.monitoring.exporter.endpoint import Endpoint, read_endpoint, write_endpoint
from production_ml.monitoring.exporter.process import MetricsServer, make_way
from production_ml.monitoring.run_directory import process_start
from production_ml.monitoring.run_log import RunLogWriter
from production_ml.monitoring.run_watch import CLOSED_EVENT, RunWatch


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def log(run, source):
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source)
    yield writer
    writer.close()


@pytest.fixture
def node(run):
    """This host, with an endpoint file that names this process as its exporter."""
    write_endpoint(run, socket.gethostname(), Endpoint("127.0.0.1", 1, os.getpid(), process_start(os.getpid())))
    return socket.gethostname()


def test_metrics_are_served_on_the_socket_that_was_handed_over_and_the_port_is_freed_after(listener):
    registry = CollectorRegistry()
    Gauge("train_loss", "loss", registry=registry).set(0.5)
    address = listener.getsockname()
    server = MetricsServer(registry, listener.dup())
    listener.close()

    text = urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/metrics", timeout=10).read().decode()
    server.close()

    assert "train_loss 0.5" in text
    socket.create_server(address).close()


def test_the_exporter_of_a_run_that_is_over_takes_its_endpoint_with_it(run, log, node):
    log.event(CLOSED_EVENT)

    assert make_way(run, RunWatch(run, "h1"), None, threading.Event())
    assert not run.exporter_endpoint(node).exists()


def test_a_monitor_that_came_in_the_last_moment_keeps_the_exporter(run, log, node):
    log.event("run_started")

    assert not make_way(run, RunWatch(run, "h1"), None, threading.Event())
    assert read_endpoint(run, node) is not None


def test_a_successors_endpoint_is_left_alone(run, log, node):
    init = Endpoint("127.0.0.1", 1, 1, process_start(1))
    write_endpoint(run, node, init)
    log.event(CLOSED_EVENT)

    assert make_way(run, RunWatch(run, "h1"), None, threading.Event())
    assert read_endpoint(run, node) == init


def test_told_to_stop_it_goes_although_the_run_lives(run, log, node):
    log.event("run_started")
    stop = threading.Event()
    stop.set()

    assert make_way(run, RunWatch(run, "h1"), None, stop)
    assert not run.exporter_endpoint(node).exists()
