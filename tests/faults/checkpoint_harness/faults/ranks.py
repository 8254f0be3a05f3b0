"""One of two gloo ranks is killed while both write one sharded checkpoint."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..processes import Child, Tell
from ..scene import HANG_SECONDS, NotReachedError, Scene, Story, save_steps
from ..syscall_gate import CHANGES, Call
from ..training import Training
from .kills import kill

_QUIET_SECONDS = 0.4
"""So long without a change to the directory, and a launcher would end the ranks that still wait for a dead one."""


def killed(scene: Scene) -> Story:
    """A random rank, before a random change that either of them makes."""
    target, victim = scene.rng.randrange(1, 150), scene.rng.randrange(2)
    struck: list[Call] = []

    def nanny(tell: Tell) -> None:
        ranks = []
        for rank in range(2):
            if (pid := os.fork()) == 0:
                _train_rank(scene, rank, tell)
                os._exit(0)
            tell("pid", rank, pid)
            ranks.append(pid)
        for pid in ranks:
            os.waitpid(pid, 0)

    def decide(call: Call) -> int:
        if call.number >= target and not struck:
            pids = {message[1]: message[2] for message in child.heard_so_far() if message[0] == "pid"}
            if victim in pids:
                struck.append(call)
                kill(pids[victim])
        return 0

    child = Child(nanny, log=scene.log, gated=CHANGES, directory=scene.root)
    assert child.gate is not None
    deadline = time.monotonic() + HANG_SECONDS
    child.gate.keep(decide, deadline_seconds=deadline, is_enough=lambda quiet: bool(struck) and quiet > _QUIET_SECONDS)
    child.kill()
    messages, _ = child.ended(timeout_seconds=1)
    if not struck:
        raise NotReachedError("rank")
    story = Story(where=f"rank {victim} killed before {struck[0].name} {struck[0].path} (change {target})")
    return scene.tell(story, [message for message in messages if message[0] != "pid"], 0, was_killed=True)


def _train_rank(scene: Scene, rank: int, tell: Tell) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(scene.directory / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    training = Training(_sharded)
    saver = scene.system.saver(scene.root, training)

    def of_rank_0(*message: Any) -> None:
        if rank == 0:
            tell(*message)

    save_steps(scene.system, saver, training, [3, 4], 0, of_rank_0)


def _sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    fully_shard(model, mesh=mesh)
    return model
