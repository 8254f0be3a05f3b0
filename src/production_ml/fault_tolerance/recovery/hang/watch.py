"""A watch inside the worker, for a loop of the user's own under plain torchrun: a clear end instead of a hang."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TextIO

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError, ExitCode
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.pulse import Phase, Pulse
from production_ml.fault_tolerance.recovery.hang import answering
from production_ml.fault_tolerance.recovery.hang.limits import (
    HangLimits,
    StepTimes,
    parse_hang_timeout,
    silent_seconds,
)
from production_ml.fault_tolerance.recovery.hang.processes import data_workers_of, look_at
from production_ml.fault_tolerance.recovery.hang.stacks import Activity, Frame, Stack, activity_of, place_of

_LOOK_SECONDS: Final = 0.25
_VICTIM_GRACE_SECONDS: Final = 2.0
"""A rank that waits for its peers lets the one that hangs end first: torchrun then names the right one."""
_DEAD_MAN_FACTOR: Final = 1.5
_logger = logging.getLogger(__name__)
_own: Pulse | None = None


@contextmanager
def paused() -> Iterator[None]:
    """Within the block this worker evaluates, saves or compiles: it may be silent for longer. Without a pulse, nothing.

    Example:
        with paused():
            accuracy = evaluate(model)
    """
    pulse = answering.current_pulse() or _own
    if pulse is None:
        yield
        return
    former = pulse.read().phase
    pulse.enter(Phase.PAUSED)
    try:
        yield
    finally:
        pulse.enter(former if former is not Phase.PAUSED else Phase.TRAINING)


class HangWatch:
    """Ends this worker when it makes no optimizer step for too long, with its stacks and torch's flight recorder.

    Each rank watches itself, so what a stopped process or a dead machine would say is left to its peers: they wait
    for it, and end. torchrun restarts all when one ends. `production-ml launch` watches its workers from without,
    sees more, and needs none of this: under it a HangWatch does nothing.

    Args:
        timeout: "auto" learns it from the steps; or a number of seconds.
        limits: In place of `timeout`, each limit by itself.
        directory: Where `hang-rank-N.txt` is written; the run's logs by default, else only stderr has the stacks.

    Raises:
        ConfigError: The timeout is neither "auto" nor a number above 0.

    Example:
        with HangWatch():
            for batch in loader:
                ...
    """

    def __init__(
        self,
        timeout: float | Literal["auto"] = "auto",
        *,
        limits: HangLimits | None = None,
        directory: Path | str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        found = limits or parse_hang_timeout(str(timeout))
        if found is None:
            raise ConfigError("timeout", timeout, 'must be "auto" or a number of seconds', cure="Make no HangWatch.")
        self._limits = found
        self._directory = Path(directory) if directory is not None else None
        self._clock = clock
        self._rank = DistributedEnv.read().rank
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._main_thread = threading.main_thread().ident or 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to watch."""
        global _own
        if self._thread is not None or answering.answer_launcher() is not None:
            return
        with tempfile.NamedTemporaryFile(prefix="production-ml-pulse-") as place:
            _own = self._pulse = Pulse(Path(place.name))  # the mapping outlives the name
        import torch.optim  # noqa: F401 - its steps are what beats

        answering.count_steps(self._pulse)
        self._dump_file = self._open_dump_file()
        self._thread = threading.Thread(target=self._run, name="hang-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching: what comes now, such as a last evaluation, may take as long as it likes."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        faulthandler.cancel_dump_traceback_later()
        if self._dump_file is not sys.__stderr__:
            self._dump_file.close()
            with suppress(OSError):
                Path(self._dump_file.name).unlink()

    def _run(self) -> None:
        times = StepTimes(self._limits)
        raised = 1.0
        cpu_seconds = look_at(os.getpid()).cpu_seconds
        while not self._ended.wait(_LOOK_SECONDS):
            former_cpu, cpu_seconds = cpu_seconds, look_at(os.getpid()).cpu_seconds
            beat = self._pulse.read()
            times.see(beat)
            if not beat.steps:
                continue
            limit, silence = times.limit_seconds(beat.phase), silent_seconds(beat, self._clock.monotonic_seconds())
            # A C call that never returns and holds the GIL stops this thread too; faulthandler's own needs no GIL.
            faulthandler.dump_traceback_later(
                max(limit * _DEAD_MAN_FACTOR, 4 * _LOOK_SECONDS), exit=True, file=self._dump_file
            )
            if silence <= limit:
                raised = 1.0
                continue
            stack = self._main_stack()
            activity = activity_of(stack)
            if raised == 1.0 and (
                raise_to := self._raise(activity, limit, silence, stack, is_busy=_is_busy(cpu_seconds - former_cpu))
            ):
                raised = raise_to
            is_victim = activity in (Activity.COLLECTIVE, Activity.BACKWARD)
            if silence > limit * raised + (_VICTIM_GRACE_SECONDS if is_victim else 0.0):
                self._end(silence, activity, stack)

    def _raise(self, activity: Activity, limit: float, silence: float, stack: Stack, *, is_busy: bool) -> float | None:
        """What to multiply the limit by, for a rank that is slow but alive, or waits for one that may be."""
        if activity is Activity.PAUSE:
            raised = max(self._limits.paused_seconds / limit, self._limits.raise_factor)
        elif activity in (Activity.COLLECTIVE, Activity.BACKWARD):
            raised = self._limits.raise_factor  # the peer that it waits for may be alive; it ends by itself if it can
        elif is_busy:
            raised = self._limits.raise_factor
        else:
            return None
        log_event(
            _logger,
            "timeout_raised",
            f"rank {self._rank} has made no step for {silence:.1f} s, {activity} at {place_of(stack)}: it gets "
            f"{limit * raised:.1f} s",
            level=logging.WARNING,
            limit_seconds=limit * raised,
        )
        return raised

    def _end(self, silence: float, activity: Activity, stack: Stack) -> None:
        place = place_of(stack)
        log_event(
            _logger,
            "hang_found",
            f"rank {self._rank} has made no step for {silence:.1f} s: it {activity} at {place}. "
            f"Ending it with exit code {int(ExitCode.RESTART_ME)}, for its launcher to start all ranks again.",
            level=logging.ERROR,
            ranks=[self._rank],
            doing=[f"{activity} at {place}"],
            silent_seconds=silence,
        )
        self._dump_file.write(f"rank {self._rank} made no step for {silence:.1f} s: it {activity} at {place}\n")
        self._dump_file.flush()
        faulthandler.dump_traceback(self._dump_file, all_threads=True)
        if self._dump_file is not sys.__stderr__:
            with suppress(OSError):
                Path(self._dump_file.name).with_suffix(".flight.json").write_bytes(answering.flight_recorder())
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        for pid in data_workers_of(os.getpid()):
            # One that hangs too would outlive this process, and hold on to its output and its memory.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(ExitCode.RESTART_ME)

    def _main_stack(self) -> Stack:
        frame = sys._current_frames().get(self._main_thread)
        frames = []
        while frame is not None:
            frames.append(Frame(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name))
            frame = frame.f_back
        return tuple(frames)

    def _open_dump_file(self) -> TextIO:
        if self._directory is not None:
            with suppress(OSError):
                self._directory.mkdir(parents=True, exist_ok=True)
                return (self._directory / f"hang-rank-{self._rank}.txt").open("w")
        assert sys.__stderr__ is not None  # noqa: S101 - a worker under a launcher has one
        return sys.__stderr__


def _is_busy(cpu_seconds: float) -> bool:
    """Since the last look; a process that waits uses a few thousandths of a core."""
    return cpu_seconds > _LOOK_SECONDS / 4
