"""From a GPU: how fast a save copies the state to the host, as a share of what the bus gives to a pinned copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import Progress

from checkpoint_async import AsyncSaver, async_savers
from checkpoint_states import transformer
from checkpoint_timing import Contender, Row, Section, measure, share

_PINNED = "pinned copy"
_BUFFER_BYTES = 1 << 30


def staging_rate(size_bytes: int, directory: Path, *, rounds: int, progress: Progress) -> Section:
    """A save with nothing to hide behind: what save() and the wait before the next step take is the copy."""
    training = transformer(size_bytes, "cuda")
    size = training.size_bytes
    source = torch.ones(min(size, _BUFFER_BYTES), dtype=torch.uint8, device="cuda")
    target = torch.ones(source.numel(), dtype=torch.uint8, pin_memory=True)

    def copy() -> None:
        for begin in range(0, size, source.numel()):
            length = min(source.numel(), size - begin)
            target[:length].copy_(source[:length], non_blocking=True)
        torch.cuda.synchronize()

    def step() -> None:
        training.optimizer.step()
        torch.cuda.synchronize()

    training.tokens = torch.zeros(1, 32, dtype=torch.long, device="cuda")
    training.forward_backward()
    with async_savers(training, directory) as savers:
        todo = {_PINNED: Contender(run=copy), "optimizer step": Contender(run=step)}
        for name, saver in savers.items():
            todo[name] = _save_and_step(saver, step)
        samples = measure(todo, rounds=rounds, progress=progress, title="copy from the GPU", warm_up=2)
    steps = sorted(samples.pop("optimizer step"))
    step_seconds = steps[len(steps) // 2]
    rows = []
    for name, found in samples.items():
        seconds = found if name == _PINNED else [max(1e-9, sample - step_seconds) for sample in found]
        row = Row(name=name, samples=seconds, ratios={"of pinned copy": share(samples[_PINNED], seconds)})
        row.ratios["rate"] = f"{size / row.median / 1e9:.1f} GB/s"
        rows.append(row)
    note = "Until the state may change: save() and the next optimizer step at once, less the step alone."
    return Section(
        name="cuda-staging", title="Copy from the GPU", note=note, rows=rows, state_bytes=size,
        tensors=training.tensor_count,
    )  # fmt: skip


def _save_and_step(saver: AsyncSaver, step: Callable[[], None]) -> Contender:
    def run() -> None:
        saver.save()
        saver.before_step()
        step()

    return Contender(run=run, prepare=torch.cuda.synchronize, check=saver.wait)
