"""At the end of a script its native threads are left in peace until they are done, but not for ever."""

from __future__ import annotations

import hashlib
import threading

from production_ml.fault_tolerance.farewell import _another_thread_runs, await_native_threads


def test_a_thread_that_works_without_the_interpreter_is_waited_for():
    data = bytes(1 << 28)
    began, done = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        hashlib.sha256(data).digest()  # lets go of the interpreter, as gloo's threads do
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    await_native_threads()

    assert done.is_set()
    thread.join()


def test_threads_that_only_wait_do_not_hold_up_the_end():
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()

    await_native_threads()

    assert not _another_thread_runs()
    over.set()
    thread.join()
