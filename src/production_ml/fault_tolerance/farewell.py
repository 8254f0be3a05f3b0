"""A script's end, without an abort: native threads let go of its last tensors before the interpreter ends.

A thread of gloo drops a collective's tensors some time after the collective has returned, and needs the interpreter
for it. If that has begun to end, the process is aborted (torch 2.13, `std::terminate` below `~AsyncAllgatherWork`),
which a launcher takes for a failure of training. Seen in 3 of 10 runs of two FSDP2 ranks that ended with a collective,
in spite of destroy_process_group().
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
# The interpreter changes hands at least every 5 ms (sys.getswitchinterval), and at once while this thread sleeps.
_LOOK_SECONDS: Final = 0.01
_QUIET_LOOKS: Final = 3
_AT_MOST_SECONDS: Final = 1.0


@functools.cache
def end_well() -> None:
    """Let this process's exit wait for native threads; to say it again changes nothing."""
    atexit.register(await_native_threads)


def await_native_threads() -> None:
    """Sleep until no other thread of this process has had anything to do for a while; a moment, as a rule."""
    deadline = time.monotonic() + _AT_MOST_SECONDS
    quiet = 0
    while quiet < _QUIET_LOOKS and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        quiet = 0 if _another_thread_runs() else quiet + 1


def _another_thread_runs() -> bool:
    """Whether one runs, or would run if a core were free for it."""
    own = str(threading.get_native_id())
    return any(_state(task) == "R" for task in _TASKS.glob("*") if task.name != own)


def _state(task: Path) -> str:
    try:
        # The command name, in parentheses, may hold spaces; the state follows it.
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
