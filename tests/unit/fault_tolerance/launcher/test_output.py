"""Workers' output is kept whole in files, and reaches the terminal in whole lines."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from production_ml.fault_tolerance.launcher.output import STDERR, STDOUT, OutputRelay


class Worker:
    """Writes as a worker would."""

    def __init__(self, relay: OutputRelay, rank: int, directory: Path) -> None:
        self.stdout_file, self.stderr_file = directory / f"{rank}.out", directory / f"{rank}.err"
        self.streams = relay.open(rank, self.stdout_file, self.stderr_file)

    def write(self, text: bytes) -> None:
        os.write(self.streams.stdout, text)

    def complain(self, text: bytes) -> None:
        os.write(self.streams.stderr, text)

    def end(self) -> None:
        self.streams.close()


@pytest.fixture
def relay():
    relay = OutputRelay()
    yield relay
    relay.close()


def test_what_workers_print_is_in_their_files_and_on_the_terminal(relay, tmp_path, capfd):
    first, second = Worker(relay, 0, tmp_path), Worker(relay, 1, tmp_path)
    relay.start()

    first.write(b"loss 1.0\n")
    second.complain(b"a warning\n")
    first.end()
    second.end()
    relay.close()

    assert first.stdout_file.read_bytes() == b"loss 1.0\n"
    assert second.stderr_file.read_bytes() == b"a warning\n"
    assert capfd.readouterr() == ("loss 1.0\n", "a warning\n")


def test_two_ranks_do_not_write_into_each_others_lines(relay, tmp_path, capfd):
    first, second = Worker(relay, 0, tmp_path), Worker(relay, 1, tmp_path)

    first.write(b"rank 0 is ")
    second.write(b"rank 1 is ")
    first.write(b"here\n")
    second.write(b"here too\n")
    first.end()
    second.end()
    relay.start()
    relay.close()

    assert sorted(capfd.readouterr().out.splitlines()) == ["rank 0 is here", "rank 1 is here too"]


def test_a_stream_that_is_not_shown_is_kept(tmp_path, capfd):
    relay = OutputRelay(lambda rank, stream: (rank, stream) != (0, STDOUT))
    worker = Worker(relay, 0, tmp_path)
    relay.start()

    worker.write(b"quiet\n")
    worker.complain(b"loud\n")
    worker.end()
    relay.close()

    assert worker.stdout_file.read_bytes() == b"quiet\n"
    assert capfd.readouterr() == ("", "loud\n")


def test_the_last_words_of_a_worker_are_there_as_soon_as_it_has_ended(relay, tmp_path):
    worker = Worker(relay, 3, tmp_path)
    relay.start()

    worker.complain(b"Traceback\nValueError: \xff\n")
    worker.end()

    assert relay.stderr_tail(3) == ["Traceback", "ValueError: \N{REPLACEMENT CHARACTER}"]


def test_closing_takes_what_is_there_though_a_child_holds_the_pipe(relay, tmp_path):
    worker = Worker(relay, 0, tmp_path)
    relay.start()
    worker.write(b"x" * 50_000)

    relay.close()

    assert worker.stdout_file.stat().st_size == 50_000
    with pytest.raises(BrokenPipeError):
        worker.write(b"too late")
    worker.end()


def test_a_full_disk_costs_the_file_and_not_the_worker(tmp_path, capfd, caplog):
    relay = OutputRelay()
    streams = relay.open(0, Path("/dev/full"), tmp_path / "err")
    relay.start()

    os.write(streams.stdout, b"step 1\n")
    os.write(streams.stdout, b"step 2\n")
    streams.close()
    relay.close()

    assert capfd.readouterr().out == "step 1\nstep 2\n"
    assert "/dev/full cannot be written" in caplog.text


def test_a_log_file_that_cannot_be_made_does_not_stop_a_restart(tmp_path, capfd, caplog):
    relay = OutputRelay()
    streams = relay.open(0, tmp_path / "missing" / "out", tmp_path / "missing" / "err")
    relay.start()

    os.write(streams.stdout, b"step 1\n")
    streams.close()
    relay.close()

    assert capfd.readouterr().out == "step 1\n"
    assert "missing/out cannot be written" in caplog.text


@contextlib.contextmanager
def unread_stdout() -> Iterator[None]:
    """Within the block, this process's stdout is a pipe that is full."""
    reader, writer = os.pipe()
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b"x" * select.PIPE_BUF)
    former = os.dup(STDOUT)
    os.dup2(writer, STDOUT)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(former, STDOUT)
        os.close(former)
        os.close(reader)


def test_a_terminal_that_nobody_reads_does_not_hold_up_closing(tmp_path, capfd):
    relay = OutputRelay()
    worker = Worker(relay, 0, tmp_path)
    closing = threading.Thread(target=relay.close, daemon=True)

    with unread_stdout():
        relay.start()
        for step in range(200):
            worker.write(b"step %d\n" % step)
        worker.end()
        closing.start()
        closing.join(60)

        assert not closing.is_alive()
    assert worker.stdout_file.read_bytes().splitlines()[-1] == b"step 199"
    assert "not all output was shown" in capfd.readouterr().err


def test_streams_have_the_numbers_that_the_system_gives_them():
    assert (STDOUT, STDERR) == (1, 2)
