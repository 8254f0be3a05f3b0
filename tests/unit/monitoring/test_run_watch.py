"""A run is over when what it lives in has ended, and not a moment before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from production_ml.monitoring.run_directory import RunDirectory, process_start
from production_ml.monitoring.run_log import RunLogWriter, Source
from production_ml.monitoring.run_watch import CLOSED_EVENT, RunWatch


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


@pytest.fixture
def writer(run: RunDirectory) -> Iterator[Callable[[Source], RunLogWriter]]:
    writers: list[RunLogWriter] = []

    def make(source: Source) -> RunLogWriter:
        name = f"{source.role}-{source.rank}"
        writers.append(RunLogWriter(lambda: run.run_log(name, source.attempt), source))
        return writers[-1]

    yield make
    for made in writers:
        made.close()


@contextmanager
def failing_disk(run: RunDirectory) -> Iterator[None]:
    """Every look at the log directory raises an OSError: its name leads to one that is too long."""
    away = run.path / "elsewhere"
    run.log_directory.rename(away)
    run.log_directory.symlink_to("x" * 300)
    yield
    run.log_directory.unlink()
    away.rename(run.log_directory)


def owned_by(source: Source, process: subprocess.Popen[bytes], **facts: object) -> Source:
    return replace(source, owner_pid=process.pid, owner_start=process_start(process.pid), **facts)


def test_a_script_ends_its_run_by_closing_its_monitor(run, source, writer):
    watch, log = RunWatch(run, "h1"), writer(source)
    log.event("run_started")
    before = watch.is_over()
    log.event(CLOSED_EVENT)

    assert (before, watch.is_over()) == (False, True)


def test_a_script_that_monitors_again_goes_on(run, source, writer):
    watch = RunWatch(run, "h1")
    writer(source).event(CLOSED_EVENT)
    writer(replace(source, started_at=1.0)).event("run_started")

    assert not watch.is_over()


def test_under_a_launcher_closing_is_not_the_end_for_workers_may_be_restarted(run, source, writer, launcher):
    watch = RunWatch(run, "h1")
    writer(owned_by(source, launcher)).event(CLOSED_EVENT)
    before = watch.is_over()
    launcher.communicate()

    assert (before, watch.is_over()) == (False, True)


def test_the_launchers_own_log_does_not_end_the_run_while_it_lives(run, source, writer, launcher):
    writer(owned_by(source, launcher, role="launcher", pid=launcher.pid)).event("launch_finished")

    assert not RunWatch(run, "h1").is_over()


def test_a_script_that_was_killed_has_ended_although_it_closed_nothing(run, source, writer, launcher):
    writer(owned_by(source, launcher, pid=launcher.pid)).event("run_started")
    watch = RunWatch(run, "h1")
    before = watch.is_over()
    launcher.kill()
    launcher.wait()

    assert (before, watch.is_over()) == (False, True)


def test_another_process_with_the_same_pid_is_not_taken_for_the_owner(run, source, writer):
    writer(replace(source, owner_start=source.owner_start - 1)).event("run_started")

    assert RunWatch(run, "h1").is_over()


def test_a_child_that_was_forked_and_logged_does_not_keep_the_run_alive(run, source, writer):
    writer(replace(source, pid=1)).event("from the child")
    writer(source).event(CLOSED_EVENT)

    assert RunWatch(run, "h1").is_over()


def test_other_nodes_processes_are_not_asked_about_here(run, source, writer):
    writer(replace(source, node="h2")).event("run_started")
    writer(source).event(CLOSED_EVENT)

    assert RunWatch(run, "h1").is_over()
    assert not RunWatch(run, "h2").is_over()


def test_an_owner_counts_before_the_log_could_name_it(run, launcher):
    watch = RunWatch(run, "h1", owner_pid=launcher.pid, owner_start=process_start(launcher.pid))
    before = watch.is_over()
    launcher.communicate()

    assert (before, watch.is_over()) == (False, True)


def test_an_owner_that_was_gone_from_the_beginning_is_gone(run):
    assert RunWatch(run, "h1", owner_pid=os.getpid(), owner_start=0).is_over()


def test_a_run_whose_directory_was_deleted_is_over(run, source, writer):
    writer(source).event("run_started")
    watch = RunWatch(run, "h1")
    before = watch.is_over()
    shutil.rmtree(run.path)

    assert not before
    assert [watch.is_over() for _ in range(10)] == [False] * 9 + [True]


def test_a_directory_that_a_network_disk_does_not_know_for_a_moment_ends_nothing(run, source, writer):
    writer(source).event("run_started")
    watch = RunWatch(run, "h1")
    for _ in range(3):
        run.log_directory.rename(run.path / "elsewhere")
        away = [watch.is_over() for _ in range(9)]
        (run.path / "elsewhere").rename(run.log_directory)

        assert [*away, watch.is_over()] == [False] * 10


def test_a_disk_that_answers_with_errors_ends_nothing_and_is_read_again_when_it_is_well(run, source, writer, caplog):
    log = writer(source)
    log.event("run_started")
    watch = RunWatch(run, "h1")
    with failing_disk(run):
        failing = [watch.is_over() for _ in range(20)]
        log.event(CLOSED_EVENT)
        failing.append(watch.is_over())

    assert failing == [False] * 21
    assert watch.failures == 21
    assert len([message for message in caplog.messages if "cannot be looked at" in message]) == 5
    assert watch.is_over()


def test_an_owner_that_ends_while_the_disk_fails_ends_the_run(run, source, writer, launcher):
    writer(owned_by(source, launcher)).event("run_started")
    watch = RunWatch(run, "h1")
    before = watch.is_over()
    with failing_disk(run):
        launcher.communicate()

        assert (before, watch.is_over()) == (False, True)
