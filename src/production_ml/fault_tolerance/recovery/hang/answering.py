"""What a worker does so that its launcher can see a hang: its steps beat, and it answers when asked where it is.

A signal makes it dump its stacks: faulthandler's handler is written in C and needs no GIL, so it answers from within a
C call that never returns. A thread hands out torch's flight recorder. All goes to files in memory beside the pulse,
never to a disk, which may be what hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.distributed_env import OWNER_VARIABLE
from production_ml.fault_tolerance.pulse import PULSE_VARIABLE, Phase, Pulse

STACK_SIGNAL: Final = signal.SIGRTMIN + 9
"""Of those that nobody uses: USR1 is SLURM's, USR2 torch's, and those around SIGRTMIN are taken by C libraries."""
_FLIGHT_SUFFIX: Final = ".flight"


@dataclass(frozen=True, slots=True)
class AnswerFiles:
    """Where a worker answers, beside its pulse."""

    pulse: Path

    @property
    def stacks(self) -> Path:
        """The first line is the main thread's ident; then one dump after another."""
        return self.pulse.with_suffix(".stacks")

    @property
    def question(self) -> Path:
        """A FIFO: each byte asks for the flight recorder."""
        return self.pulse.with_suffix(".ask")

    @property
    def flight(self) -> Path:
        return self.pulse.with_suffix(_FLIGHT_SUFFIX)


_pulse: Pulse | None = None
_counts_steps = False


def answer_launcher(environ: Mapping[str, str] | None = None) -> Pulse | None:
    """Begin to beat and to answer, if a launcher has asked for it; done once for a process.

    Only the worker itself does: what it starts, such as a process that writes checkpoints, has the same environment.
    """
    global _pulse
    variables = os.environ if environ is None else environ
    path = variables.get(PULSE_VARIABLE)
    if path is None or variables.get(OWNER_VARIABLE) != str(os.getppid()):
        return None
    if _pulse is None:
        with contextlib.suppress(OSError):  # its launcher is gone, and the directory with it
            _pulse = Pulse(Path(path))
            _pulse.enter(Phase.STARTING)
            answer_with_stacks(AnswerFiles(Path(path)).stacks)
            _answer_with_flight_recorder(AnswerFiles(Path(path)))
    if _pulse is not None:
        count_steps(_pulse)
    return _pulse


def current_pulse() -> Pulse | None:
    """This worker's pulse, once it beats."""
    return _pulse


def count_steps(pulse: Pulse) -> None:
    """Let every optimizer step of this process beat `pulse`; without effect before torch is imported."""
    global _counts_steps
    if _counts_steps or "torch.optim.optimizer" not in sys.modules:
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def beat(*_arguments: Any) -> None:
        pulse.beat()

    register_optimizer_step_post_hook(beat)
    _counts_steps = True


def answer_with_stacks(path: Path) -> None:
    """Dump the stacks of all threads to `path` whenever STACK_SIGNAL comes; forked children do so too."""
    stream = path.open("a", buffering=1)
    stream.write(f"main thread {threading.main_thread().ident:#x}\n")
    faulthandler.register(STACK_SIGNAL, file=stream, all_threads=True, chain=False)
    _kept.append(stream)


_kept: list[Any] = []
"""faulthandler writes to the descriptor, which closes with the file object."""


def flight_recorder() -> bytes:
    """Torch's record of the newest collectives as JSON, for nccl and gloo alike; empty where there is none."""
    if "torch.distributed" not in sys.modules:
        return b""
    try:
        from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined] # not in torch's stubs
    except ImportError:
        return b""
    dump = _dump_fr_trace_json(True, False)
    return dump.encode() if isinstance(dump, str) else bytes(dump)


def _answer_with_flight_recorder(files: AnswerFiles) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(files.question, 0o600)
    # Open for writing too: a FIFO without a writer reads as ended, and the thread would spin.
    question = os.open(files.question, os.O_RDWR | os.O_CLOEXEC)

    def answer() -> None:
        while os.read(question, 1):
            part = files.flight.with_suffix(".part")
            with contextlib.suppress(OSError):
                part.write_bytes(flight_recorder())
                part.rename(files.flight)

    threading.Thread(target=answer, name="flight-recorder", daemon=True).start()
