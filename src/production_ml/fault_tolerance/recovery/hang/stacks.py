"""Reads what faulthandler dumps, and tells what a thread does: waits for its peers, for data, or works."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Final

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_STDLIB: Final = sysconfig.get_paths()["stdlib"]
_PAUSE_FUNCTION = re.compile(r"^_?(eval|valid|test|measure|save|checkpoint|snapshot)(?!.*train)", re.IGNORECASE)
_PAUSE_FILES: Final = (
    "torch/_dynamo/",
    "torch/_inductor/",
    "torch/serialization.py",
    "torch/distributed/checkpoint/",
    "safetensors/",
    "fault_tolerance/checkpoint_manager.py",
    "fault_tolerance/saving/",
    "fault_tolerance/loading/",
)
_NO_GRAD_FILE: Final = "torch/utils/_contextlib.py"
"""A function under @torch.no_grad() or @torch.inference_mode(); an optimizer's step is one too."""
_OPTIMIZER: Final = "torch/optim/"
_DATA_FILES: Final = ("torch/utils/data/",)
_BACKWARD: Final = ("torch/autograd/graph.py", "_engine_run_backward")


class Activity(StrEnum):
    """What a rank does, as far as its Python stack tells."""

    COLLECTIVE = "waits for its peers"
    BACKWARD = "is in backward"
    DATA = "waits for its DataLoader"
    PAUSE = "evaluates, saves or compiles"
    WORK = "is"
    UNKNOWN = "does not say where it is"


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    @property
    def is_library(self) -> bool:
        """Whether it belongs to Python or to an installed package."""
        return "site-packages" in self.file or self.file.startswith((_STDLIB, "<"))

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


Stack = tuple[Frame, ...]
"""The innermost call first."""


def parse_stacks(dump: str) -> dict[int, Stack]:
    """The stack of each thread, by the thread's ident."""
    stacks: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in dump.splitlines():
        if thread := _THREAD.match(line):
            frames = stacks.setdefault(int(thread[1], 16), [])
            frames.clear()  # of several dumps, the newest holds
        elif frame := _FRAME.match(line):
            frames.append(Frame(frame[1], int(frame[2]), frame[3]))
    return {ident: tuple(found) for ident, found in stacks.items()}


def activity_of(stack: Stack) -> Activity:
    """What a thread does whose stack this is."""
    if not stack:
        return Activity.UNKNOWN
    if any("torch/distributed/" in frame.file and "/checkpoint/" not in frame.file for frame in _library_calls(stack)):
        return Activity.COLLECTIVE
    if any(part in frame.file for frame in _library_calls(stack) for part in _DATA_FILES):
        return Activity.DATA
    if _is_pause(stack):
        return Activity.PAUSE
    innermost = stack[0]
    if innermost.file.endswith(_BACKWARD[0]) and innermost.function == _BACKWARD[1]:
        return Activity.BACKWARD
    return Activity.WORK


def place_of(stack: Stack) -> str:
    """The innermost line of the user's own code; where there is none, the innermost line."""
    own = next((frame for frame in stack if not frame.is_library), None)
    if own is None:
        return str(stack[0]) if stack else ""
    called = "" if stack[0] is own else f" (in {PurePath(stack[0].file).name}: {stack[0].function})"
    return f"{own}{called}"


def _library_calls(stack: Sequence[Frame]) -> Sequence[Frame]:
    """What the user's innermost line has called: a frame further out says nothing of what is waited for."""
    for index, frame in enumerate(stack):
        if not frame.is_library:
            return stack[:index]
    return stack


def _is_pause(stack: Stack) -> bool:
    is_step = any(_OPTIMIZER in frame.file for frame in stack)
    return any(
        any(part in frame.file for part in _PAUSE_FILES)
        or (_NO_GRAD_FILE in frame.file and not is_step)
        or (not frame.is_library and _PAUSE_FUNCTION.match(frame.function))
        for frame in stack
    )
