"""Measures checkpoints against their floors and peers: `make bench-checkpoint`, or `checkpoint.py --help`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from checkpoint_cuda import staging_rate
from checkpoint_disk import DiskBench
from checkpoint_floors import prewarm
from checkpoint_memory import MEMORY_OF, peak_memory
from checkpoint_planning import planning
from checkpoint_ranks import growth
from checkpoint_report import markdown, show, show_goals, write_into
from checkpoint_states import GIB, MIB, Training, transformer
from checkpoint_timing import OURS, Section
from checkpoint_training import TrainingBench

PARTS = ("disk", "stall", "overhead", "memory", "planning", "growth", "cuda")


@dataclass(kw_only=True, slots=True)
class Plan:
    """How large and how often.

    Attributes:
        sizes: Bytes of the Adam states that are saved and loaded.
        small: Bytes of the state for step times, and of the states of the growth table.
        counts: Numbers of tensors in the growth table.
        planning_counts: Numbers of tiny tensors.
        worlds: Numbers of ranks.
        rounds: How often each is measured.
        step_seconds: The least duration of a step in the step-time tables.
        memory_of: Whose peak memory is measured.
    """

    sizes: tuple[int, ...] = (GIB, 4 * GIB)
    small: int = 256 * MIB
    counts: tuple[int, ...] = (10, 100, 1_000, 10_000)
    planning_counts: tuple[int, ...] = (1_000, 10_000)
    worlds: tuple[int, ...] = (1, 2, 4)
    rounds: int = 5
    step_seconds: float = 0.5
    memory_of: tuple[str, ...] = MEMORY_OF


QUICK = Plan(
    sizes=(2 * MIB,), small=2 * MIB, counts=(10,), planning_counts=(100,), worlds=(2,), rounds=1,
    step_seconds=0.01, memory_of=(OURS,),
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Bench:
    """Everything, part by part; each part hands its sections over as soon as it has them."""

    plan: Plan
    directory: Path
    progress: Progress
    threads: int = field(default_factory=torch.get_num_threads)

    def disk(self) -> Iterator[Section]:
        for size in self.plan.sizes:
            yield from self._disk(transformer(size))

    def _disk(self, training: Training) -> Iterator[Section]:
        bench = DiskBench(
            training=training, directory=self.directory, rounds=self.plan.rounds, threads=self.threads,
            progress=self.progress,
        )  # fmt: skip
        return bench.sections()

    def stall(self) -> Iterator[Section]:
        for size in self.plan.sizes:
            yield self._training().stall(size)

    def overhead(self) -> Iterator[Section]:
        for threads in sorted({1, self.threads}):
            yield self._training().overhead(self.plan.small, threads=threads, step_seconds=self.plan.step_seconds)

    def memory(self) -> Iterator[Section]:
        for size in self.plan.sizes:
            yield peak_memory(size, self.directory, names=self.plan.memory_of, progress=self.progress)

    def planning(self) -> Iterator[Section]:
        yield from planning(
            self.plan.planning_counts, self.directory, rounds=2 * self.plan.rounds, progress=self.progress
        )

    def growth(self) -> Iterator[Section]:
        yield from growth(
            self.plan.small, self.plan.counts, self.plan.worlds, self.directory, rounds=self.plan.rounds,
            progress=self.progress,
        )  # fmt: skip

    def cuda(self) -> Iterator[Section]:
        if not torch.cuda.is_available():
            return
        for size in self.plan.sizes:
            yield staging_rate(size, self.directory, rounds=self.plan.rounds, progress=self.progress)
        bench = self._training("cuda")
        yield bench.stall(self.plan.sizes[0])
        yield bench.overhead(self.plan.sizes[0], threads=self.threads, step_seconds=self.plan.step_seconds)

    def _training(self, device: str = "cpu") -> TrainingBench:
        return TrainingBench(
            directory=self.directory, rounds=self.plan.rounds, progress=self.progress, device=device
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: choose from {', '.join(PARTS)}")
    plan = QUICK if options.quick else Plan()
    if options.size_gib:
        plan.sizes = tuple(int(size * GIB) for size in options.size_gib)
    if options.rounds:
        plan.rounds = options.rounds
    # DCP's shared memory takes a file descriptor per tensor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    console = Console(stderr=True)
    with _directory(options.directory) as directory, _progress(console) as progress:
        bench = Bench(plan=plan, directory=directory, progress=progress)
        if not options.quick:
            progress.console.print("Touching memory once, for the first touch of all is slow in a virtual machine ...")
            prewarm(3 * max(plan.sizes))
        sections = _run(bench, options.parts or PARTS, lambda section: show(progress.console, section))
        document = {"machine": _machine(directory), "rounds": plan.rounds, "sections": [s.to_dict() for s in sections]}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    show_goals(console, document["sections"])
    if options.markdown:
        write_into(options.markdown, markdown(document))
    return 0


def _run(bench: Bench, parts: tuple[str, ...], tell: Callable[[Section], None]) -> list[Section]:
    sections = []
    for part in parts:
        for section in getattr(bench, part)():
            tell(section)
            sections.append(section)
    return sections


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"which parts to run, of {', '.join(PARTS)}; all unless given")
    parser.add_argument("--size-gib", type=float, action="append", help="a size of Adam state; may be given repeatedly")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--directory", type=Path, help="where to write, on the disk to measure; default: the temporary")
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument("--markdown", type=Path, help="write the tables there, below the line that says so")
    parser.add_argument("--quick", action="store_true", help="tiny and few: tests that it runs, measures nothing")
    return parser


@contextmanager
def _directory(parent: Path | None) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )  # fmt: skip


def _machine(directory: Path) -> dict[str, Any]:
    packages = ("torch", "safetensors", "lightning", "accelerate", "xxhash", "production-ml")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(directory).free / GIB, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(main())
