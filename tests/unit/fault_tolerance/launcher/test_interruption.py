"""A signal raises only where the launcher waits, and exactly once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from production_ml.fault_tolerance.launcher.interruption import Interruption


class StopError(Exception):
    """What these tests raise."""


@pytest.fixture
def interruption():
    interruption = Interruption(lambda number: StopError(number.name))
    with interruption.installed([signal.SIGTERM, signal.SIGHUP]):
        yield interruption


def test_a_signal_during_work_raises_at_the_next_wait(interruption):
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.received is signal.SIGTERM

    with pytest.raises(StopError, match="SIGTERM"), interruption.raising():
        pytest.fail("the wait began")


def test_a_signal_during_a_wait_ends_it(interruption):
    with pytest.raises(StopError), interruption.raising():
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_hurries_and_does_not_raise_again(interruption):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopError), interruption.raising():
        pass
    assert not interruption.is_hurried

    os.kill(os.getpid(), signal.SIGTERM)
    with interruption.raising():
        pass

    assert interruption.is_hurried


def test_handlers_are_as_before_when_the_launch_is_over():
    before = signal.getsignal(signal.SIGTERM)

    with Interruption(lambda number: StopError(number.name)).installed([signal.SIGTERM]):
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption(lambda number: StopError(number.name))
        with interruption.installed([signal.SIGHUP]):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert interruption.received is None


def test_outside_of_the_main_thread_signals_are_left_alone():
    failed: list[Exception] = []

    def launch() -> None:
        try:
            with Interruption(lambda number: StopError(number.name)).installed([signal.SIGTERM]):
                pass
        except ValueError as problem:
            failed.append(problem)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()

    assert not failed
