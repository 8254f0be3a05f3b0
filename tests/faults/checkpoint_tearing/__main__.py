"""Save while training goes on, load each checkpoint from the disk, and count what is not the moment of the save."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from production_ml.fault_tolerance import CheckpointManager

from .ways import WAYS, Way

_FURTHER_STEPS = 3


class Manager(Protocol):
    """What a loop calls; `Late` has to fail where a CheckpointManager must not."""

    def save(self, **state: Any) -> None: ...

    def wait(self) -> None: ...

    def close(self) -> None: ...


class Late:
    """A manager that copies the state only when it is waited for: the torn saves that this test has to see."""

    def __init__(self, root: Path) -> None:
        self._manager = _manager(root)
        self._state: dict[str, Any] | None = None

    def save(self, **state: Any) -> None:
        self._state = state

    def wait(self) -> None:
        if self._state is not None:
            self._manager.save(**self._state)
            self._manager.wait()
            self._state = None

    def close(self) -> None:
        self._manager.close()


def main() -> int:
    """Exit with 1 where a save was torn."""
    parser = argparse.ArgumentParser(prog="checkpoint_tearing", description=__doc__)
    parser.add_argument("--saves", type=int, default=1000, help="Over all ways together.")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="2: DDP over gloo.")
    parser.add_argument(
        "--late", action="store_true", help="Save too late on purpose; every save has to be found torn."
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with a pool of threads must not fork, and one core is the writer's
    with tempfile.TemporaryDirectory(prefix="checkpoint-tearing-") as work:
        child = os.fork() if options.ranks == 2 else None
        if options.ranks == 2:
            _join(0 if child else 1, Path(work) / "store")
        per_way = -(-options.saves // len(options.ways))
        found = {name: _try(name, Path(work) / name, per_way, options) for name in options.ways}
        if options.ranks == 2:
            dist.destroy_process_group()
        if child == 0:
            os._exit(0)
        if child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise SystemExit("rank 1 failed")
    for name, way in found.items():
        torn, overlapped, dropped = len(way["torn"]), way["overlapped"], way["dropped"]
        print(f"{name}: {torn} of {way['saves']} torn, {overlapped} outlasted a training step, {dropped} dropped")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(way["torn"] for way in found.values()) else 0


def _join(rank: int, store: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)


def _try(name: str, root: Path, saves: int, options: argparse.Namespace) -> dict[str, Any]:
    way, witness = WAYS[name](DistributedDataParallel if options.ranks == 2 else None), WAYS[name]()
    witness.train_step()  # an optimizer that has taken a step has the entries that a load fills
    manager: Manager = Late(root) if options.late else _manager(root)
    torn: list[dict[str, Any]] = []
    overlapped = dropped = 0
    for number in range(1, saves + 1):
        way.train_step()
        truth = way.snapshot()
        way.save(manager, number)
        way.right_after_save()
        way.train_step()
        overlapped += not (root / f"step-{number:08d}").exists()
        for _ in range(_FURTHER_STEPS):
            way.train_step()
        manager.wait()
        if not (root / f"step-{number:08d}").exists():
            dropped += 1  # noticed, told in the log, and never committed
            continue
        if differing := _differences(truth, witness, root, number):
            torn.append({"save": number, "differing": differing[:10]})
    manager.close()
    return {"saves": saves, "torn": torn, "overlapped": overlapped, "dropped": dropped}


def _manager(root: Path) -> CheckpointManager:
    return CheckpointManager(root, keep_last_n=2, save_best=False)


def _differences(truth: dict[str, Any], witness: Way, root: Path, step: int) -> list[str]:
    """What a load from the disk finds to be otherwise than it was when `save` was called."""
    loaded = witness.load(_manager(root))
    if loaded != step:
        return [f"step {loaded}"]
    found = witness.snapshot()
    return [name for name in truth.keys() | found.keys() if not _same(truth.get(name), found.get(name))]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        # By bytes: a NaN is the same as itself.
        return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    return bool(type(left) is type(right) and left == right)


if __name__ == "__main__":
    sys.exit(main())
