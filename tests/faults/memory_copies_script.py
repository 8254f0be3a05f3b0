"""A training that saves each step in memory, each tenth on disk: `memory_copies_script.py STEPS STEP_SECONDS [COPIES]`.

It prints what it resumed from, each step whose save has begun, and the weights' hash at the end.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from production_ml.core.structured_logging import Event, subscribe
from production_ml.fault_tolerance import CheckpointManager

ON_DISK_EACH = 10


def say(text: str) -> None:
    """Print a line at once: print() may be killed between a line and its end."""
    line = f"attempt {os.environ.get('PRODUCTION_ML_ATTEMPT', '0')} rank {dist.get_rank()} {text}\n"
    os.write(sys.stdout.fileno(), line.encode())


def tell_source(event: Event) -> None:
    if event.name == "checkpoint_loaded":
        say(f"source {event.fields['source']}")


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update((value.full_tensor() if isinstance(value, DTensor) else value).numpy().tobytes())
    return found.hexdigest()


def main(steps: int, step_seconds: float, copies: int) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 257), nn.ReLU(), nn.Linear(257, 16))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    manager = CheckpointManager("checkpoints", memory_copies=copies)
    subscribe(tell_source)
    state = manager.load_latest(model, optimizer)
    say(f"pid {os.getpid()} resumed {state['step']} damaged {len(state.damaged)}")
    for step in range(state["step"] + 1, steps + 1):
        batch = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        time.sleep(step_seconds)
        optimizer.step()
        save = manager.save if step % ON_DISK_EACH == 0 else manager.save_to_memory
        save(model=model, optimizer=optimizer, step=step, metrics={"loss": 1.0})
        say(f"saving {step}")
    manager.close()
    found = digest(model)
    say(f"weights {found}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
