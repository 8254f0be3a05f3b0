"""The digit classifier trained by ElasticTraining, which goes on under any number of workers.

production-ml launch --nproc-per-node=2 elastic.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from data import read_table, write_table
from model import DigitsCNN
from torch import nn
from torch.utils.data import TensorDataset

from production_ml.fault_tolerance import CheckpointManager, ElasticTraining
from production_ml.monitoring import TrainingMonitor


def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    pixels, labels = batch
    return nn.functional.cross_entropy(model(pixels), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=25, help="steps")
    parser.add_argument("--checkpoints", default="checkpoints", help="where to save, and to resume from")
    parser.add_argument("--micro-batch-size", type=int, help="the most samples that a worker puts through at once")
    options = parser.parse_args()

    table = Path(f"{options.checkpoints}.csv")
    if not table.exists():
        own = table.with_suffix(
            f".{os.getpid()}"
        )  # each worker writes its own: whichever comes last replaces the others
        write_table(own)
        own.replace(table)
    examples = read_table(table, "train")

    torch.manual_seed(0)
    model = DigitsCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    training = ElasticTraining(
        model=model,
        optimizer=optimizer,
        dataset=TensorDataset(examples.pixels, examples.labels),
        global_batch_size=128,
        micro_batch_size=options.micro_batch_size,
        checkpoints=CheckpointManager(options.checkpoints, save_every=options.checkpoint_every, save_best=False),
        monitor=TrainingMonitor("digits", "elastic"),
    )
    result = training.run(loss_fn, max_steps=options.steps)
    print(f"{result.steps} steps in {result.epochs} epochs, resumed from step {result.resumed_from_step}")


if __name__ == "__main__":
    main()
