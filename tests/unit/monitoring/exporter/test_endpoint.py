"""An exporter is found while it runs, and what a dead one left behind misleads nobody."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading

import pytest

from production_ml.monitoring.exporter import endpoint as endpoint_module
from production_ml.monitoring.exporter.endpoint import Endpoint, read_endpoint, start_lock, write_endpoint
from production_ml.monitoring.run_directory import process_start


def test_a_running_exporter_is_found_by_the_later_monitors(run):
    here = Endpoint("127.0.0.1", 8000, os.getpid(), process_start(os.getpid()))
    write_endpoint(run, "h1", here)

    assert read_endpoint(run, "h1") == here
    assert here.url == "http://127.0.0.1:8000/metrics"
    assert read_endpoint(run, "h2") is None


def test_what_a_dead_exporter_left_behind_does_not_count(run):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_endpoint(run, "h1", Endpoint("127.0.0.1", 8000, process.pid, process_start(process.pid)))
    alive = read_endpoint(run, "h1")
    process.communicate()

    assert alive is not None
    assert read_endpoint(run, "h1") is None


def test_another_process_with_its_pid_is_not_taken_for_it(run):
    write_endpoint(run, "h1", Endpoint("127.0.0.1", 8000, os.getpid(), process_start(os.getpid()) - 1))

    assert read_endpoint(run, "h1") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"host": "127.0.0.1"}'])
def test_a_file_that_is_none_of_ours_is_as_good_as_no_file(run, content):
    run.exporter_endpoint("h1").write_text(content)

    assert read_endpoint(run, "h1") is None


def test_one_that_only_feeds_sinks_has_no_url():
    assert Endpoint("127.0.0.1", None, 1, 1).url is None


def test_the_lock_is_held_by_one_at_a_time(run):
    inside, overlaps = threading.Lock(), []

    def enter() -> None:
        with start_lock(run, "h1"):
            overlaps.append(not inside.acquire(blocking=False))
            inside.release()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert overlaps == [False] * 8


def test_a_lock_that_is_never_given_back_is_not_waited_for_without_end(run, monkeypatch):
    monkeypatch.setattr(endpoint_module, "_LOCK_TIMEOUT_SECONDS", 0.0)
    with run.exporter_start_lock("h1").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(TimeoutError, match="held by another process"), start_lock(run, "h1"):
            pass
