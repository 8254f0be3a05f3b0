"""Train a digit classifier with DDP, under any launcher or none. The numbered lines are what production_ml adds.

production-ml launch --nproc-per-node=2 train.py
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from data import Examples, batches, read_table, share, write_table
from model import DigitsCNN
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from production_ml.fault_tolerance import CheckpointManager
from production_ml.monitoring import TrainingMonitor


def main() -> None:
    options = parse_options()
    rank, world_size, device = join_the_other_workers()
    torch.manual_seed(options.seed)
    training, validation = (read_table(find_table(options), split) for split in ("train", "validation"))
    network = DigitsCNN(options.width).to(device)
    model: nn.Module = DistributedDataParallel(network) if world_size > 1 else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=options.lr, total_steps=options.steps + 1)

    monitor = TrainingMonitor("digits", options.experiment, options.metrics_port, config=vars(options))  # 1
    checkpoints = CheckpointManager(options.checkpoints, best_metric="accuracy", best_mode="max")  # 2
    state = checkpoints.load_latest(model, optimizer, schedule=schedule)  # 3

    started = time.perf_counter()
    for step, batch in batches(training, options.batch_size, options.seed, first_step=state["step"]):
        if step >= options.steps:
            break
        torch.manual_seed(options.seed * 1_000_003 + step * world_size + rank)  # dropout, too, repeats after a restart
        loss = train_step(model, optimizer, share(batch, rank, world_size), device)
        schedule.step()
        finished = time.perf_counter()
        rate = len(batch) / (finished - started)
        started = finished
        learning_rate = optimizer.param_groups[0]["lr"]
        monitor.log({"train/loss": loss, "train/lr": learning_rate, "train/samples_per_second": rate}, step)  # 4

        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            accuracy = measure_accuracy(network, validation, device)
            monitor.log({"validation/accuracy": accuracy}, step)
            state = {"model": model, "optimizer": optimizer, "schedule": schedule}
            checkpoints.save(**state, step=step + 1, metrics={"loss": loss, "accuracy": accuracy})  # 5
            started = time.perf_counter()

    checkpoints.close()
    monitor.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Examples, device: torch.device) -> float:
    model.train()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(batch.pixels.to(device)), batch.labels.to(device))
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def measure_accuracy(network: nn.Module, examples: Examples, device: torch.device) -> float:
    network.eval()
    found = network(examples.pixels.to(device)).argmax(dim=1).cpu()
    return (found == examples.labels).float().mean().item()


def join_the_other_workers() -> tuple[int, int, torch.device]:
    """Rank, world size and device, as the launcher says; without one this process is alone."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        return 0, 1, device
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def find_table(options: argparse.Namespace) -> Path:
    """The table that was asked for; without one it is written here, by one worker of each machine."""
    if options.data is not None:
        return Path(options.data)
    table = Path("digits.csv")
    if os.environ.get("LOCAL_RANK", "0") == "0" and not table.exists():
        write_table(table.with_suffix(".new"))
        table.with_suffix(".new").rename(table)
    if dist.is_initialized():
        dist.barrier()
    return table


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="the table that data.py writes")
    parser.add_argument("--checkpoints", default="checkpoints", help="where to save, and to resume from")
    parser.add_argument("--experiment", default="cnn")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128, help="over all workers")
    parser.add_argument("--checkpoint-every", type=int, default=25, help="steps")
    parser.add_argument("--width", type=int, default=32, help="channels of the first convolution")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metrics-port", type=int, default=8000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
