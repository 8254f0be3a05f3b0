"""The memory that a save takes beside the state: the peak over a trainer and all its children, each page once."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from rich.progress import Progress

from checkpoint_async import ASYNC_SAVERS, AsyncSaver, async_savers, one_rank_group
from checkpoint_peers import Accelerate, Dcp, Lightning, Safetensors, TorchSave, remove
from checkpoint_states import Training, transformer
from checkpoint_timing import Row, Section

_SAVES = 3
_PAUSE_SECONDS = 0.005
_SYNC = {
    "torch.save": TorchSave,
    "safetensors": Safetensors,
    "DCP": Dcp,
    "Lightning": Lightning,
    "accelerate": Accelerate,
}
MEMORY_OF = (*ASYNC_SAVERS, *_SYNC)


def peak_memory(size_bytes: int, directory: Path, *, names: tuple[str, ...], progress: Progress) -> Section:
    """Each contender saves three times in a process of its own, training meanwhile."""
    rows = []
    task = progress.add_task("peak memory", total=len(names))
    tensors = 0
    for name in names:
        progress.update(task, description=f"peak memory: {name}")
        extra, size_bytes, tensors = _measure(name, size_bytes, directory)
        rows.append(Row(name=name, samples=[extra / size_bytes], unit="x state"))
        progress.advance(task)
    progress.remove_task(task)
    note = (
        f"The greatest sum of proportional set sizes (PSS) of the trainer and its children over {_SAVES} saves, less "
        "what it was after a training step before the first; the page cache is not in it."
    )
    return Section(
        name="memory", title="Peak extra memory", note=note, rows=rows, state_bytes=size_bytes, tensors=tensors
    )  # fmt: skip


def _measure(name: str, size_bytes: int, directory: Path) -> tuple[int, int, int]:
    """Bytes beyond the baseline, and the state's size and number of tensors."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_train, args=(name, size_bytes, str(directory), there))
    child.start()
    there.close()
    try:
        found_bytes, tensors = here.recv()
        trainer = psutil.Process(child.pid)
        baseline = peak = _memory(trainer)
        here.send("save")
        while not here.poll():
            peak = max(peak, _memory(trainer))
            time.sleep(_PAUSE_SECONDS)
        here.recv()
    finally:
        here.close()
        child.join()
    return peak - baseline, found_bytes, tensors


def _memory(trainer: psutil.Process) -> int:
    return sum(_pss(process.pid) for process in (trainer, *trainer.children(recursive=True)))


def _pss(pid: int) -> int:
    """Shared pages count by their share, so that the sum over all sharers counts each once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0  # a child that has ended
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _train(name: str, size_bytes: int, directory: str, pipe: Connection) -> None:
    training = transformer(size_bytes)
    training.tokens = torch.zeros(1, 32, dtype=torch.long)
    training.forward_backward()
    training.optimizer.step()
    pipe.send((training.size_bytes, training.tensor_count))
    pipe.recv()
    if name in _SYNC:
        _save_between_steps(training, name, Path(directory))
    else:
        _save_beside_steps(training, name, Path(directory))
    pipe.send("done")


def _save_between_steps(training: Training, name: str, directory: Path) -> None:
    peer = _SYNC[name](training, directory / "memory")
    with one_rank_group():
        for _ in range(_SAVES):
            remove(peer)
            peer.save()
            training.forward_backward()
            training.optimizer.step()
    remove(peer)


def _save_beside_steps(training: Training, name: str, directory: Path) -> None:
    with async_savers(training, directory, names=(name,)) as savers:
        saver: AsyncSaver = savers[name]
        for _ in range(_SAVES):
            saver.save()
            training.forward_backward()
            saver.before_step()
            training.optimizer.step()
            saver.wait()
