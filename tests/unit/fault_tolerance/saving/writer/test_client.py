"""The writer is there when it is needed, is started anew when it was killed, and its errors arrive whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.saving.writer.client import Writer


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


def process_of(writer: Writer) -> psutil.Process:
    """The one that it has started."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    # The session's servers may be children too.
    [process] = [child for child in children if "saving.writer.process" in " ".join(child.cmdline())]
    return process


def test_what_it_wrote_is_what_was_in_the_image(directory, share_of, writer):
    share = share_of(1)

    size_bytes = writer.write(share.order, share.image, directory.begin(1, "00ff"))

    assert size_bytes == directory.manifest(1).size_bytes
    assert list(verify_checkpoint(directory, 1)) == []


def test_one_process_serves_all_saves_though_the_image_grows(directory, share_of, writer):
    processes = set()
    for step in (1, 2):
        share = share_of(step)
        share.image.resize(step << 20)
        share = share_of(step)
        writer.write(share.order, share.image, directory.begin(step, "00ff"))
        processes.add(process_of(writer).pid)

    assert len(processes) == 1
    assert directory.steps() == [1, 2]


def test_it_is_small_and_has_no_torch_in_it(share_of, writer):
    writer.prepare(share_of(1).image)

    libraries = [mapped.path for mapped in process_of(writer).memory_maps()]
    assert not [path for path in libraries if "libtorch" in path]


def test_an_error_comes_with_what_it_means_what_to_do_and_its_number(directory, share_of, writer):
    share = share_of(1)
    lock = directory.begin(1, "00ff")
    (share.order.written.path / "rank-00000.safetensors").touch()

    with pytest.raises(CheckpointWriteError) as raised:
        writer.write(share.order, share.image, lock)

    assert raised.value.what == f"The checkpoint of step 1 could not be written to {directory.path}: File exists."
    assert "newest committed checkpoint is unchanged" in raised.value.meaning
    assert "move the file that is in its place" in raised.value.cure
    assert raised.value.errno == 17


def test_one_that_was_killed_between_two_saves_is_started_anew(directory, share_of, writer):
    share = share_of(1)
    writer.prepare(share.image)
    process = process_of(writer)
    process.kill()
    process.wait()

    writer.write(share.order, share.image, directory.begin(1, "00ff"))

    assert process_of(writer).pid != process.pid
    assert directory.steps() == [1]


def test_one_that_is_killed_amid_a_save_is_told_of_and_the_next_save_works(directory, share_of, writer):
    share, lock = share_of(1, world_size=2), directory.begin(1, "00ff")
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(writer.write, share.order, share.image, lock)
        while lock.descriptor is not None:  # until it has the lock: now it waits for rank 1
            pass
        process_of(writer).kill()

    with pytest.raises(CheckpointWriteError, match="the process that writes was killed by signal 9") as raised:
        outcome.result()
    assert "want of memory" in raised.value.cure
    assert list(directory.path.iterdir()) == []

    share = share_of(2)
    writer.write(share.order, share.image, directory.begin(2, "00ff"))
    assert directory.steps() == [2]


@pytest.fixture
def interrupted_when() -> Iterator[Callable[..., None]]:
    """Have the main thread interrupted, as by a Ctrl-C or an alarm, once something is so."""
    threads = []

    def interrupt(error: BaseException, condition: Callable[[], bool]) -> None:
        def handle(*_: object) -> None:
            raise error

        def watch() -> None:
            while not condition():
                pass
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

        previous = signal.signal(signal.SIGUSR2, handle)
        threads.append((threading.Thread(target=watch), previous))
        threads[-1][0].start()

    yield interrupt
    for thread, previous in threads:
        thread.join()
        signal.signal(signal.SIGUSR2, previous)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("an alarm")])
def test_a_save_whose_waiting_is_interrupted_is_finished_and_its_answer_is_not_the_next_ones(
    directory, share_of, writer, interrupted_when, error
):
    share, lock = share_of(1, world_size=2), directory.begin(1, "00ff")
    interrupted_when(error, lambda: lock.descriptor is None)
    with pytest.raises(type(error)):
        writer.write(share.order, share.image, lock)
    share_of(1, rank=1, world_size=2, tensors={"of rank 1": torch.ones(2)}).carry_out()  # until the commit

    larger = share_of(2, tensors={"y": torch.ones(5000)})
    size_bytes = writer.write(larger.order, larger.image, directory.begin(2, "00ff"))

    assert directory.steps() == [1, 2]
    assert size_bytes == directory.manifest(2).size_bytes != directory.manifest(1).size_bytes
    assert list(verify_checkpoint(directory, 2)) == []


def test_what_is_written_into_an_image_again_waits_for_the_interrupted_save_of_it(
    directory, share_of, writer, interrupted_when
):
    share, lock = share_of(1, world_size=2), directory.begin(1, "00ff")
    interrupted_when(KeyboardInterrupt(), lambda: lock.descriptor is None)
    with pytest.raises(KeyboardInterrupt):
        writer.write(share.order, share.image, lock)
    process = process_of(writer)
    share_of(1, rank=1, world_size=2, tensors={"of rank 1": torch.ones(2)}).carry_out()

    writer.reuse(share.image, agreed=0)

    assert not process.is_running()


def test_a_writer_that_is_dropped_ends_its_process_and_says_what_should_have_been_called(directory, share_of):
    writer, share = Writer(), share_of(1)
    writer.write(share.order, share.image, directory.begin(1, "00ff"))
    process = process_of(writer)
    opened = set(Path("/proc/self/fd").iterdir())

    with pytest.warns(ResourceWarning, match=r"without close\(\)") as warned:
        del writer

    assert len(warned) == 1
    assert not process.is_running()  # and no zombie either
    assert len(opened - set(Path("/proc/self/fd").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_are_for_the_trainer_do_not_end_it(directory, share_of, writer, number):
    share = share_of(1)
    writer.write(share.order, share.image, directory.begin(1, "00ff"))  # it is up
    process = process_of(writer)
    os.kill(process.pid, number)

    share = share_of(2)
    writer.write(share.order, share.image, directory.begin(2, "00ff"))

    assert process_of(writer).pid == process.pid
    assert os.getsid(process.pid) == process.pid  # nor those for the trainer's group


def test_it_ends_when_it_is_closed_though_a_fork_holds_the_channel(share_of, writer):
    writer.prepare(share_of(1).image)
    process = process_of(writer)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)

    writer.close()

    assert not process.is_running()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
