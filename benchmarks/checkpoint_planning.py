"""What planning a save costs: thousands of tiny tensors, whose bytes cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from checkpoint_async import ASYNC_SAVERS, AsyncSaver, async_savers
from checkpoint_states import Training, bag
from checkpoint_timing import Contender, Row, Section, measure

_SAVERS = ASYNC_SAVERS[:2]
"""DCP's own memory takes more file descriptors for 10,000 tensors than a process may have."""
_BYTES_PER_MEMBER = 48
"""A weight and two moments of 16 bytes each."""


def planning(counts: tuple[int, ...], directory: Path, *, rounds: int, progress: Progress) -> Iterator[Section]:
    """One section per number of tensors: the time inside save()."""
    for count in counts:
        yield _planning(count, directory, rounds=rounds, progress=progress)


def _planning(count: int, directory: Path, *, rounds: int, progress: Progress) -> Section:
    training = bag(count // 4 * _BYTES_PER_MEMBER, count)
    with async_savers(training, directory, names=_SAVERS) as savers:
        todo = {name: _contender(saver) for name, saver in savers.items()}
        todo["DCP's planner"] = _planner(training, is_cached=False)
        todo["DCP's planner, caching"] = _planner(training, is_cached=True)
        # Two warm-up rounds: the first save plans, the second may still lay out memory.
        samples = measure(todo, rounds=rounds, progress=progress, title=f"{count:,} tensors", warm_up=2)
    rows = []
    for name, found in samples.items():
        milliseconds = [1000 * sample for sample in found]
        row = Row(name=name, samples=milliseconds, unit="ms")
        row.ratios = {"per 1,000 tensors": f"{1000 * row.median / training.tensor_count:.1f} ms"}
        rows.append(row)
    note = (
        "Time inside save() plus what the next step has to wait for, of every save but the first two; tensors of 16 "
        "bytes, so that nothing of it is copying. async_save plans in the background, at the"
        " expense of the training's GIL; the rows of its planner say how long."
    )
    title = f"Planning of a save of {training.tensor_count:,} tensors"
    size, tensors = training.size_bytes, training.tensor_count
    return Section(
        name=f"planning-{count}", title=title, note=note, rows=rows, state_bytes=size, tensors=tensors
    )  # fmt: skip


def _contender(saver: AsyncSaver) -> Contender:
    def save() -> None:
        saver.save()
        saver.before_step()

    return Contender(run=save, prepare=saver.wait, check=saver.wait)


def _planner(training: Training, *, is_cached: bool) -> Contender:
    """DCP's planning alone, as its save() does it on one rank."""
    planner = DefaultSavePlanner(enable_plan_caching=is_cached)

    def plan() -> None:
        state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
        planner.set_up_planner(state, storage_meta=None, is_coordinator=True)
        plans, _ = planner.create_global_plan([planner.create_local_plan()])
        planner.finish_plan(plans[0])

    return Contender(run=plan)
