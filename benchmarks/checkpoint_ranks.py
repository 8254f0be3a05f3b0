"""How the cost grows with tensors and ranks: the same bytes in 10 to 10,000 tensors, on 1, 2 and 4 ranks.

Run as a script it is one rank: `checkpoint_ranks.py JOB`, where JOB is JSON, with torchrun's environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from checkpoint_floors import Floors
from checkpoint_peers import Dcp, Ours, quiet
from checkpoint_states import Training, bag, with_adam_state
from checkpoint_timing import OURS, Contender, Row, Section, measure, multiple, share

_RAW, _COPY, _IN_SAVE = "raw write+fsync", "memcpy", "time in save()"
_LIMIT_SECONDS = 1_800


def growth(
    size_bytes: int, counts: tuple[int, ...], worlds: tuple[int, ...], directory: Path, *, rounds: int,
    progress: Progress,
) -> list[Section]:  # fmt: skip
    """Three tables: durable saves, warm loads, and the time inside save()."""
    found: list[tuple[str, int, int, dict[str, Any]]] = []
    jobs = [(world, strategy) for world in worlds for strategy in (("DDP", "FSDP2") if world > 1 else ("plain",))]
    task = progress.add_task("growth", total=len(jobs))
    for world, strategy in jobs:
        progress.update(task, description=f"growth: {world} ranks, {strategy}")
        job = {"size_bytes": size_bytes, "counts": counts, "strategy": strategy, "rounds": rounds}
        for measured in _on_ranks(world, job, directory):
            label = f"{world} rank{'s' * (world > 1)}, {strategy}, {measured['tensors']:,} tensors"
            found.append((label, measured["size_bytes"], measured["tensors"], measured))
        progress.advance(task)
    progress.remove_task(task)
    size, tensors = found[0][1], max(tensors for _, _, tensors, _ in found)
    saves = [row for label, _, _, measured in found for row in _rows(label, measured["save"], "of raw", share)]
    loads = [row for label, _, _, measured in found for row in _rows(label, measured["load"], "memcpy", multiple)]
    plans = [_plan_row(label, count, measured["in_save"]) for label, _, count, measured in found]
    together = "; every rank moves its share at once, the slowest counts"
    return [
        Section(name=name, title=title, note=note, rows=rows, state_bytes=size, tensors=tensors)
        for name, title, note, rows in (
            (
                "growth-save",
                "Durable save by tensors and ranks",
                f"Speed as a share of raw write+fsync{together}.",
                saves,
            ),
            ("growth-load", "Warm load by tensors and ranks", f"Duration as a multiple of memcpy{together}.", loads),
            ("growth-plan", "Time inside save() by tensors and ranks", "The copy of the state is in it.", plans),
        )
    ]


def _rows(
    label: str, samples: dict[str, list[float]], column: str, ratio: Callable[[list[float], list[float]], str]
) -> list[Row]:
    floor = samples[_RAW if _RAW in samples else _COPY]
    as_text = {
        name: ratio(floor, seconds) if ratio is share else ratio(seconds, floor) for name, seconds in samples.items()
    }
    return [
        Row(name=f"{label}: {name}", samples=seconds, ratios={column: as_text[name]})
        for name, seconds in samples.items()
    ]  # fmt: skip


def _plan_row(label: str, tensors: int, seconds: list[float]) -> Row:
    row = Row(name=label, samples=[1000 * sample for sample in seconds], unit="ms")
    row.ratios = {"per 1,000 tensors": f"{1000 * row.median / tensors:.1f} ms"}
    return row


def _on_ranks(world_size: int, job: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Run a job on that many processes; gives what rank 0 measured."""
    place = directory / "ranks"
    place.mkdir()
    command = [sys.executable, __file__, json.dumps({**job, "directory": str(place)})]
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world_size)}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(world_size):
            environment = {**os.environ, **meeting_point, "OMP_NUM_THREADS": "1", "RANK": str(rank)}
            process = stack.enter_context(subprocess.Popen(command, env=environment))
            stack.callback(process.kill)  # where one rank fails, the others would wait for it
            processes.append(process)
        _await(processes)
    results: list[dict[str, Any]] = json.loads((place / "results.json").read_text())
    shutil.rmtree(place)
    return results


def _await(processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while any(process.poll() is None for process in processes):
        failed = [process.returncode for process in processes if process.returncode]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if any(process.returncode != 0 for process in processes):
        raise RuntimeError(f"ranks failed: exit codes {[process.returncode for process in processes]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank_main(job: dict[str, Any]) -> None:
    dist.init_process_group("gloo")
    directory = Path(job["directory"])
    results = [
        _measure_count(job, count, directory / f"count-{count}") for count in job["counts"]
    ]  # fmt: skip
    if dist.get_rank() == 0:
        (directory / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def _measure_count(job: dict[str, Any], count: int, directory: Path) -> dict[str, Any]:
    whole = bag(job["size_bytes"], count)
    size, tensors = whole.size_bytes, whole.tensor_count
    training = _wrapped(whole, job["strategy"])
    rank = dist.get_rank()
    if rank == 0:
        directory.mkdir()
    dist.barrier()
    floors = Floors(size // dist.get_world_size(), directory / f"raw-{rank}")
    ours, dcp = Ours(training, directory / "ours"), Dcp(training, directory / "dcp")
    in_save: list[float] = []

    def save_ours() -> float:
        begin = time.perf_counter()
        ours.begin_save()
        in_save.append(_slowest(time.perf_counter() - begin))
        ours.manager.wait()
        return time.perf_counter() - begin

    saves = {
        _RAW: _together(lambda: floors.write(direct=False), prepare=floors.remove),
        OURS: _together(save_ours, prepare=lambda: _clear(ours.path)),
        "DCP": _together(dcp.save, prepare=lambda: _clear(dcp.path)),
    }
    loads = {
        _COPY: _together(lambda: floors.memcpy(threads=1)),
        OURS: _together(ours.load),
        "DCP": _together(dcp.load),
    }
    with quiet(), Progress(disable=True) as hidden:
        saved = measure(saves, rounds=job["rounds"], progress=hidden, title="", warm_up=2)
        loaded = measure(loads, rounds=job["rounds"], progress=hidden, title="")
    floors.remove()
    for path in (ours.path, dcp.path):
        _clear(path)
    return {"tensors": tensors, "size_bytes": size, "save": saved, "load": loaded, "in_save": in_save[2:]}


def _wrapped(whole: Training, strategy: str) -> Training:
    if strategy == "plain":
        return whole
    if strategy == "DDP":
        return with_adam_state(DistributedDataParallel(whole.model))
    fully_shard(whole.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return with_adam_state(whole.model)


def _together(run: Callable[[], Any], prepare: Callable[[], None] = lambda: None) -> Contender:
    """All ranks begin at once, and the slowest one's seconds count."""

    def measured() -> float:
        dist.barrier()
        begin = time.perf_counter()
        run()
        return _slowest(time.perf_counter() - begin)

    return Contender(run=measured, prepare=prepare)


def _slowest(seconds: float) -> float:
    greatest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return float(greatest)


def _clear(path: Path) -> None:
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    dist.barrier()


if __name__ == "__main__":
    _rank_main(json.loads(sys.argv[1]))
