"""What the tests of saving share: a Ctrl-C that comes while the test waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest


def is_asleep(thread: threading.Thread) -> bool:
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.fixture
def interrupted() -> Callable[[Callable[[], object]], bool]:
    """Tells whether a Ctrl-C ended a call; it comes when the call waits."""

    def call_and_interrupt(call: Callable[[], object]) -> bool:
        has_begun = threading.Event()

        def interrupt() -> None:
            has_begun.wait(60)
            while not is_asleep(threading.main_thread()):
                pass
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        try:
            has_begun.set()
            call()
        except KeyboardInterrupt:
            return True
        finally:
            interrupter.join()
        return False

    return call_and_interrupt
