"""What one rank does in the tests of checkpoints over several ranks: `checkpoint_rank_script.py SCENARIO DIRECTORY`.

Each scenario is the training script of a user, cut short. What it finds out goes to `found-RANK.json`, what it computed
to safetensors files, and the test compares.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import psutil
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - makes the backend "fake" known

from production_ml.core.errors import CheckpointError, ProductionMLError
from production_ml.fault_tolerance import CheckpointManager


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def build(seed: int, width: int = 7) -> nn.Sequential:
    """Sizes that two ranks cannot halve."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


def sharded(seed: int, width: int = 7) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build(seed, width)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def plain(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build(seed)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """The same batch on every rank, so that one process computes what several do."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimizer.step()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def write_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """All of a training's tensors, gathered, for the test to compare bit by bit."""
    tensors = {name: whole(value) for name, value in model.state_dict().items()}
    for index, parameter in enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{index}.{key}"] = whole(value)
    if RANK == 0:
        safetensors.torch.save_file(tensors, path)


def problem_of(call) -> str:
    try:
        call()
    except (ProductionMLError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def ddp(root: Path) -> dict[str, object]:
    """Save from DDP; refuse what one rank alone cannot save, on all ranks; go on."""
    module, optimizer = plain(0)
    model = DistributedDataParallel(module)
    train(model, optimizer, 2)
    manager = CheckpointManager(root / "ddp")
    manager.save(model=model, optimizer=optimizer, step=2, metrics={"loss": 1.0 + RANK}, epoch=RANK)
    manager.wait()
    is_there_after_wait = (root / "ddp" / "step-00000002" / "manifest.json").exists()
    write_state(root / "ddp.safetensors", module, optimizer)

    odd = {"odd": object()} if RANK == 1 else {}
    refused = problem_of(lambda: manager.save(model=model, optimizer=optimizer, step=3, **odd))
    apart = problem_of(lambda: manager.save(model=model, optimizer=optimizer, step=4 + RANK))
    of_rank_1 = {"full": "yes"} if RANK == 1 else {}
    refused_full = problem_of(lambda: manager.save(model=model, optimizer=optimizer, step=5, **of_rank_1))
    manager.save(model=model, optimizer=optimizer, step=6)
    manager.close()

    other, other_optimizer = plain(1)
    refused_load = problem_of(lambda: manager.load_latest(other.state_dict() if RANK == 1 else other, other_optimizer))
    state = CheckpointManager(root / "ddp").load_latest(DistributedDataParallel(other), other_optimizer)
    train(other, other_optimizer, 1)
    train(module, optimizer, 1)
    same = all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    return {
        "is_there_after_wait": is_there_after_wait,
        "refused": refused,
        "apart": apart,
        "refused_full": refused_full,
        "refused_load": refused_load,
        "step": state["step"],
        "goes_on_the_same": same,
    }


def fsdp_save(root: Path) -> dict[str, object]:
    """Save three steps from FSDP2; between them a save that the disk of rank 1 does not take."""
    model, optimizer = sharded(0)
    manager = CheckpointManager(root / "fsdp")
    for step in (1, 2):
        train(model, optimizer, 1)
        manager.save(model=model, optimizer=optimizer, step=step)
    manager.wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if RANK == 1:
        # Room for the few bytes that tell of the failure, none for the shard.
        resource.prlimit(writer().pid, resource.RLIMIT_FSIZE, (600, limits[1]))
    manager.save(model=model, optimizer=optimizer, step=9)
    failed = problem_of(manager.wait)
    resource.prlimit(writer().pid, resource.RLIMIT_FSIZE, limits)

    train(model, optimizer, 1)
    with torch.no_grad():
        model(torch.randn(4, 5))  # leaves FSDP2's root parameters gathered; a save has to see the shards all the same
    manager.save(model=model, optimizer=optimizer, step=3)
    write_state(root / "fsdp.safetensors", model, optimizer)
    manager.close()
    return {"failed": failed, "left": names_in(root / "fsdp")}


def fsdp_load(root: Path) -> dict[str, object]:
    """Load into FSDP2 what FSDP2 wrote (its newest may be damaged) and what one plain process wrote."""
    model, optimizer = sharded(1)
    state = CheckpointManager(root / "fsdp").load_latest(model, optimizer)
    if (root / "plain").exists():
        other, other_optimizer = sharded(2)
        CheckpointManager(root / "plain").load_latest(other, other_optimizer)
        write_state(root / "plain-loaded.safetensors", other, other_optimizer)
        train(other, other_optimizer, 1)
        write_state(root / "plain-trained.safetensors", other, other_optimizer)
    mismatch = problem_of(lambda: CheckpointManager(root / "fsdp").load_latest(sharded(1, width=9)[0]))
    return {"step": state["step"], "damaged": [item.to_dict() for item in state.damaged], "mismatch": mismatch}


class Odd:
    """An extra that fails in one of its methods, on rank 1 alone."""

    def __init__(self, failing: str) -> None:
        self._failing = failing if RANK == 1 else ""

    def state_dict(self) -> dict[str, object]:
        self._fail_in("state_dict")
        return {"count": 1}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._fail_in("load_state_dict")

    def _fail_in(self, method: str) -> None:
        if method == self._failing:
            raise KeyError("gone")


def one_fails(root: Path) -> dict[str, object]:
    """What goes wrong on rank 1 alone, in every call; the script catches it each time and goes on."""
    model, _ = plain(0)
    manager = CheckpointManager(root / "one-fails")
    manager.save(model=model, step=1, odd=Odd(""))
    save_fails = problem_of(lambda: manager.save(model=model, step=2, odd=Odd("state_dict")))
    plan_fails = problem_of(lambda: manager.load_latest(model, odd=Odd("state_dict")))
    apply_fails = problem_of(lambda: manager.load_latest(model, odd=Odd("load_state_dict")))

    calls = [lambda: manager.save(model=model, step=3), lambda: manager.load_latest(model)]
    apart = [problem_of(calls[RANK]), problem_of(calls[1 - RANK])]
    elsewhere = CheckpointManager(root / "one-fails" if RANK == 0 else root / "elsewhere")
    blind = problem_of(lambda: elsewhere.load_latest(model))

    manager.save(model=model, step=4)
    manager.close()
    return {
        "save_fails": save_fails,
        "plan_fails": plan_fails,
        "apply_fails": apply_fails,
        "apart": apart,
        "blind": blind,
        "left": names_in(root / "one-fails"),
        "step": manager.load_latest(model)["step"],
    }


def new_groups(root: Path) -> dict[str, object]:
    """The process group is made anew, and the ranks meet in the same store as before, as under a launcher."""
    model, _ = plain(0)
    manager = CheckpointManager(root / "new-groups", keep_last_n=20)
    store = _get_default_store()
    step = 0
    for _ in range(3):
        for _ in range(3):
            step += 1
            manager.save(model=model, step=step)
        manager.wait()
        dist.destroy_process_group()
        # Not gloo: its own keys of the group before are still in the store, and now and then it waits for them in vain.
        dist.init_process_group("fake", store=store, rank=RANK, world_size=WORLD_SIZE)
    return {"left": names_in(root / "new-groups")}


def writer() -> psutil.Process:
    """The process that writes this rank's shards."""
    [process] = psutil.Process().children()
    return process


def lose_node_mid_save(root: Path) -> dict[str, object]:
    """Rank 1 and its writer are killed before its shard is written; rank 0 waits for it as long as it lives."""
    model, optimizer = sharded(0)
    manager = CheckpointManager(root / "fsdp")
    manager.save(model=model, optimizer=optimizer, step=1)
    manager.wait()
    if RANK == 1:
        writer().suspend()  # it does nothing more until the test kills it
    manager.save(model=model, optimizer=optimizer, step=2)
    print("waiting", writer().pid, flush=True)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    manager.wait()
    return {}


def fill(disk: Path, *, free_bytes: int) -> None:
    """Leave so much room, on all ranks at once."""
    if RANK == 0:
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(max(status.f_bavail * status.f_frsize - free_bytes, 0)))
    dist.barrier()


def make_room(disk: Path) -> None:
    if RANK == 0:
        (disk / "filler").unlink()
    dist.barrier()


def full_disk(root: Path) -> dict[str, object]:
    """First a save meets a full disk, of which rank 0 could not know; then there is one that it sees before."""
    disk, place = root / "disk", root / "disk" / "checkpoints"
    model = nn.Linear(100_000, 1, bias=False)  # one row, of which rank 1 has all
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), DeviceMesh("cpu", [1, 0]), [Shard(0)]))
    left = []

    def save(manager: CheckpointManager, step: int) -> None:
        manager.save(model=model, step=step)
        manager.wait()
        dist.barrier()
        left.append(names_in(place))

    fill(disk, free_bytes=340_000)
    with CheckpointManager(place, keep_last_n=1, save_best=False) as manager:
        save(manager, 1)
        save(manager, 2)
    make_room(disk)
    with CheckpointManager(place, keep_last_n=1, save_best=False) as manager:
        save(manager, 3)
        fill(disk, free_bytes=340_000)
        save(manager, 4)
        make_room(disk)
        save(manager, 5)
    return {"left": left, "step": CheckpointManager(place).load_latest(model)["step"]}


def die_mid_save(root: Path) -> dict[str, object]:
    """Rank 1 is killed when its writer has what it is to write, and has begun."""
    model, optimizer = sharded(0)
    manager = CheckpointManager(root / "fsdp")
    manager.save(model=model, optimizer=optimizer, step=1)
    if RANK == 1:
        while not list((root / "fsdp").glob("*step-00000001*/rank-00001.safetensors")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    manager.wait()
    return {"left": names_in(root / "fsdp")}


def synchronous(root: Path) -> dict[str, object]:
    """Rank 0 cannot write its share of the second save, of which the other rank hears only that there is none."""
    model, optimizer = plain(0)
    place = root / "synchronous"
    manager = CheckpointManager(place, asynchronous=False, save_every=1)

    def save(step: int) -> str:
        return problem_of(lambda: manager.save_if_due(model=model, optimizer=optimizer, step=step))

    def limit_writer(size_bytes: int) -> None:
        if RANK == 0:
            [writer] = psutil.Process().children()
            _, most = writer.rlimit(psutil.RLIMIT_FSIZE)
            writer.rlimit(psutil.RLIMIT_FSIZE, (size_bytes, most))

    problems = [save(1)]
    limit_writer(100)
    problems.append(save(2))
    limit_writer(resource.RLIM_INFINITY)
    problems.append(save(3))
    return {"problems": problems, "left": names_in(place)}


def main() -> None:
    scenario, root = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    scenarios = {
        "ddp": ddp,
        "fsdp-save": fsdp_save,
        "fsdp-load": fsdp_load,
        "one-fails": one_fails,
        "new-groups": new_groups,
        "die-mid-save": die_mid_save,
        "full-disk": full_disk,
        "synchronous": synchronous,
        "lose-node-mid-save": lose_node_mid_save,
    }
    try:
        found = scenarios[scenario](root)
    except CheckpointError as error:
        found = {"error": str(error)}
    (root / f"found-{scenario}-{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
