"""What saving costs a training that goes on: the stall of a save, and the step time with a save every ten steps."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from checkpoint_async import AsyncSaver, async_savers
from checkpoint_floors import Floors
from checkpoint_states import Training, give_batch, transformer
from checkpoint_timing import Row, Section, seconds_of

_NO_SAVES = "no saves"
SAVE_EVERY = 10


@dataclass(slots=True)
class _Step:
    save: float
    forward_backward: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.save + self.forward_backward + self.optimizer


@dataclass(kw_only=True, slots=True)
class TrainingBench:
    """Trains a transformer on this process's threads and saves meanwhile.

    Args:
        directory: Where all write.
        rounds: How often each is measured.
        progress: Where to show how far it is.
        device: Where the training runs.
    """

    directory: Path
    rounds: int
    progress: Progress
    device: str = "cpu"
    _steps: dict[str, list[_Step]] = field(default_factory=dict, init=False)

    def stall(self, size_bytes: int) -> Section:
        """One save, then a forward/backward longer than a copy, then a step; against the same without a save."""
        training = transformer(size_bytes, self.device)
        floors = Floors(training.size_bytes, self.directory / "raw")
        copies = [seconds_of(lambda: floors.memcpy(threads=1)) for _ in range(2 + self.rounds)][2:]
        copy = statistics.median(copies)
        give_batch(training, seconds=2 * copy)
        with async_savers(training, self.directory) as savers:
            self._measure_stalls(training, savers, copies, floors)
        copy = statistics.median(copies)
        rows = [Row(name="memcpy, 1 thread", samples=copies, ratios={"stall": "1.00x"})]
        base = self._steps[_NO_SAVES]
        optimizer, behind, total = (
            statistics.median(getattr(step, key) for step in base) for key in ("optimizer", "forward_backward", "total")
        )
        for name, steps in self._steps.items():
            if name == _NO_SAVES:
                continue
            stalls = [step.save + step.optimizer - optimizer for step in steps]
            extra = statistics.median(step.total for step in steps) - total
            in_save = statistics.median(step.save for step in steps)
            ratios = {
                "stall": f"{statistics.median(stalls) / copy:.2f}x",
                "save() alone": f"{in_save / copy:.2f}x",
                "extra step time": f"{extra / copy:.2f}x",
            }
            rows.append(Row(name=name, samples=stalls, ratios=ratios))
        note = (
            f"Stall: time inside save() plus the extra time of the next optimizer step; forward/backward is "
            f"{behind:.2f} s ({behind / copy:.1f}x memcpy) on {torch.get_num_threads()} threads. Extra step time "
            "counts what saving takes from forward/backward too. All as multiples of memcpy."
        )
        return _section("stall", "Stall per asynchronous save", note, rows, training)

    def _measure_stalls(
        self, training: Training, savers: dict[str, AsyncSaver], copies: list[float], floors: Floors
    ) -> None:
        self._steps = {name: [] for name in (_NO_SAVES, *savers)}
        task = self.progress.add_task("stall", total=(2 + self.rounds) * len(self._steps))
        for number in range(2 + self.rounds):
            copies.append(seconds_of(lambda: floors.memcpy(threads=1)))
            for name, steps in self._steps.items():
                _step(training, None)
                found = _step(training, savers.get(name), save=True)
                if name in savers:
                    savers[name].wait()
                if number >= 2:
                    steps.append(found)
                self.progress.update(task, description=f"stall: {name}", advance=1)
        self.progress.remove_task(task)

    def overhead(self, size_bytes: int, *, threads: int, step_seconds: float) -> Section:
        """Windows of ten steps with a save at the beginning, next to windows without."""
        with _threads(threads):
            training = transformer(size_bytes, self.device)
            step = give_batch(training, seconds=step_seconds)
            with async_savers(training, self.directory) as savers:
                windows = self._windows(training, savers, f"step time, {threads} threads")
        base = windows.pop(_NO_SAVES)
        rows = [Row(name=_NO_SAVES, samples=base, ratios={"overhead": "", "overhead, min to max": ""})]
        for name, samples in windows.items():
            paired = [100 * (sample / without - 1) for sample, without in zip(samples, base, strict=True)]
            ratios = {
                "overhead": f"{statistics.median(paired):+.1f}%",
                "overhead, min to max": f"{min(paired):+.1f}% to {max(paired):+.1f}%",
            }
            rows.append(Row(name=name, samples=samples, ratios=ratios))
        note = (
            f"{SAVE_EVERY} steps of {step:.2f} s with one save, training on {threads} threads, against the mean "
            "of the windows without saves before and after."
        )
        name = f"overhead-{self.device}-{threads}"
        return _section(
            name, f"Step time with a save every {SAVE_EVERY} steps, {threads} threads", note, rows, training
        )

    def _windows(self, training: Training, savers: dict[str, AsyncSaver], title: str) -> dict[str, list[float]]:
        """Seconds per window; the bare windows stand on both sides of all others, so noise that drifts cancels."""
        windows: dict[str, list[float]] = {name: [] for name in (_NO_SAVES, *savers)}
        bare: list[float] = []
        task = self.progress.add_task(title, total=(1 + self.rounds) * len(windows))
        for number in range(1 + self.rounds):
            for name in windows:
                self.progress.update(task, description=f"{title}: {name}")
                found = _window(training, savers.get(name))
                if number:
                    (bare if name == _NO_SAVES else windows[name]).append(found)
                self.progress.advance(task)
        bare.append(_window(training, None))
        windows[_NO_SAVES] = [(before + after) / 2 for before, after in itertools.pairwise(bare)]
        self.progress.remove_task(task)
        return windows


def _window(training: Training, saver: AsyncSaver | None) -> float:
    """Ten steps; the save is waited for afterwards, unmeasured, though it should long be over."""
    begin = time.perf_counter()
    for number in range(SAVE_EVERY):
        _step(training, saver, save=number == 0)
    elapsed = time.perf_counter() - begin
    if saver is not None:
        saver.wait()
    return elapsed


def _step(training: Training, saver: AsyncSaver | None, *, save: bool = False) -> _Step:
    begin = time.perf_counter()
    if saver is not None and save:
        saver.save()
    saved = time.perf_counter()
    training.forward_backward()
    _synchronize(training)
    computed = time.perf_counter()
    if saver is not None and save:
        saver.before_step()
    training.optimizer.step()
    _synchronize(training)
    return _Step(saved - begin, computed - saved, time.perf_counter() - computed)


def _synchronize(training: Training) -> None:
    if next(training.model.parameters()).is_cuda:
        torch.cuda.synchronize()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _section(name: str, title: str, note: str, rows: list[Row], training: Training) -> Section:
    size, tensors = training.size_bytes, training.tensor_count
    return Section(name=name, title=title, note=note, rows=rows, state_bytes=size, tensors=tensors)
