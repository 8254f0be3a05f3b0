"""Work is done once, and its end is awaited, however its start and the wait for it are interrupted."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from production_ml.fault_tolerance.saving.background import Background


class Work:
    """Something to do that goes on until a test lets it end."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> None:
        self.threads.append(threading.current_thread())
        self.has_begun.set()
        assert self.may_end.wait(60)


def test_work_goes_on_beside_the_caller_until_it_is_joined():
    work = Work()
    background = Background(work, name="beside")
    background.start()
    assert work.has_begun.wait(60)
    assert not background.has_ended

    work.may_end.set()
    background.join()

    assert background.has_ended
    assert [thread.name for thread in work.threads] == ["beside"]
    assert not work.threads[0].is_alive()


def test_a_wait_that_was_interrupted_has_not_ended_the_work_and_the_next_one_waits_on(interrupted):
    work = Work()
    background = Background(work, name="awaited")
    background.start()
    assert work.has_begun.wait(60)

    assert interrupted(background.join)
    assert not background.has_ended
    work.may_end.set()
    background.join()

    assert background.has_ended
    assert not work.threads[0].is_alive()


@pytest.mark.parametrize("is_alive", [True, False])
def test_work_whose_start_is_interrupted_is_done_once_whether_its_thread_lives_or_not(monkeypatch, is_alive):
    work = Work()
    work.may_end.set()
    background = Background(work, name="interrupted")
    start = threading.Thread.start

    def start_amid_ctrl_c(thread: threading.Thread) -> None:
        if is_alive:
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # A signal that comes in the microseconds of the real one cannot be timed.
        patch.setattr(threading.Thread, "start", start_amid_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            background.start()
    background.join()

    assert len(work.threads) == 1


def test_what_is_called_off_before_it_began_is_never_done():
    work = Work()
    background = Background(work, name="called off")

    assert background.call_off()
    background.start()
    background.join()

    assert work.threads == []


def test_what_has_begun_cannot_be_called_off():
    work = Work()
    work.may_end.set()
    background = Background(work, name="begun")
    background.run()

    assert not background.call_off()
    assert len(work.threads) == 1


def test_work_that_fails_has_ended_too():
    background = Background([].pop, name="failing")

    with pytest.raises(IndexError):
        background.run()
    background.join()

    assert background.has_ended


def test_who_keeps_work_that_has_ended_is_in_no_circle_with_it():
    class Keeper:
        def __init__(self) -> None:
            self.background = Background(self.work, name="kept")

        def work(self) -> None:
            """Nothing."""

    gc.disable()
    try:
        keeper = Keeper()
        keeper.background.start()
        keeper.background.join()
        kept = weakref.ref(keeper)
        del keeper
    finally:
        gc.enable()

    assert kept() is None
