"""What a writer was given is in its file, from threads and forked children too, and can be read again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from production_ml.core.errors import RunDirectoryError
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import RunLog, RunLogWriter
from production_ml.monitoring.run_log import writer as writer_module
from production_ml.testing.clock import FakeClock


@pytest.fixture
def writer(run, source) -> Iterator[RunLogWriter]:
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source, FakeClock(100.0))
    yield writer
    writer.close()


def logged(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    return [(record.step, dict(record.values)) for _, record in RunLog.open(run.path).metrics()]


def test_metrics_and_events_can_be_read_as_soon_as_they_are_written(run, source, writer):
    writer.metrics(3, ("loss", "lr"), (0.5, 0.1))
    writer.event("alert", step=3, level="error", message="look", name="any fact", title="x")

    log = RunLog.open(run.path)
    ((by, record),) = log.metrics()
    ((_, event),) = log.events("alert")
    assert (by, record.step, record.wall_seconds, record.values) == (source, 3, 100.0, {"loss": 0.5, "lr": 0.1})
    assert (event.step, event.level, event.message) == (3, "error", "look")
    assert event.fields == {"name": "any fact", "title": "x"}


def test_sets_of_names_may_alternate(run, writer):
    for step in range(6):
        names = ("loss", "lr") if step % 2 else ("accuracy",)
        writer.metrics(step, names, (float(step),) * len(names))

    assert logged(run)[-2:] == [(4, {"accuracy": 4.0}), (5, {"loss": 5.0, "lr": 5.0})]


def test_source_and_names_are_said_again_so_that_a_lost_beginning_does_not_cost_the_rest(run, source, monkeypatch):
    monkeypatch.setattr(writer_module, "_REPEAT_BYTES", 1000)
    writer = RunLogWriter(lambda: run.run_log("rank-00000", 0), source)
    for step in range(200):
        writer.metrics(step, ("loss",), (1.0,))
    writer.close()
    content = bytearray(writer.path.read_bytes())
    content[:1500] = bytes(1500)
    writer.path.write_bytes(content)

    steps = [step for step, _ in logged(run)]
    assert steps == list(range(steps[0], 200))
    assert steps[0] < 90


def test_threads_lose_nothing_and_tear_nothing(run, writer):
    def work(number: int) -> None:
        for step in range(200):
            writer.metrics(step, (f"thread/{number}", f"step/{step % 3}"), (float(number), float(step)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    seen = {(name, step) for step, values in logged(run) for name in values if name.startswith("thread/")}
    assert seen == {(f"thread/{number}", step) for number in range(4) for step in range(200)}
    assert not RunLog.open(run.path).damages


def test_a_forked_child_writes_a_file_of_its_own_even_if_the_lock_was_held(run, writer):
    writer.metrics(0, ("loss",), (1.0,))
    with writer._lock:  # as by another thread at the moment of the fork
        pid = os.fork()
        if pid == 0:
            writer.metrics(1, ("loss",), (2.0,))
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    writer.metrics(2, ("loss",), (3.0,))

    assert status == 0
    by_pid = {(source.pid, record.step) for source, record in RunLog.open(run.path).metrics()}
    assert by_pid == {(os.getpid(), 0), (pid, 1), (os.getpid(), 2)}


def test_a_forked_child_that_logs_nothing_leaves_no_file(run, writer):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

    assert len(list(run.log_directory.iterdir())) == 1


def test_a_signal_handler_may_log_while_the_interrupted_code_does(run, writer):
    former = signal.signal(signal.SIGUSR1, lambda *_: writer.event("preempted"))
    try:
        with writer._lock:
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, former)

    assert len(list(RunLog.open(run.path).events("preempted"))) == 1


def test_a_record_that_is_too_large_is_left_out_with_one_warning_and_the_others_are_kept(run, writer, caplog):
    for step in range(2):
        writer.event("exception", traceback="x" * (5 << 20))
        writer.metrics(step, ("n" * (5 << 20),), (1.0,))
        writer.metrics(step, ("loss",), (1.0,))

    assert logged(run) == [(0, {"loss": 1.0}), (1, {"loss": 1.0})]
    assert len(caplog.messages) == 1


def test_what_comes_after_close_is_left_out_quietly(run, writer):
    writer.close()
    writer.metrics(0, ("loss",), (1.0,))
    writer.event("late")
    writer.close()

    assert RunLog.open(run.path).records == []


def test_a_directory_that_takes_no_file_is_refused_before_training_starts(tmp_path, source):
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        RunLogWriter(lambda: tmp_path / "absent" / "a.runlog", source)
