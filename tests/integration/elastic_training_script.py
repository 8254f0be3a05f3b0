"""What one rank does in the tests of elastic training: `elastic_training_script.py DIRECTORY MAX_STEPS NUM_WORKERS`.

It writes down which samples it was given at which step, and rank 0 the weights at the end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import Dataset

from production_ml.fault_tolerance import CheckpointManager, ElasticTraining


class Numbered(Dataset):
    """Samples that say which they are."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        values = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return index, values[:3], values[3:]


def main() -> None:
    directory, max_steps, num_workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen: list[int] = []

    def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        ids, inputs, targets = batch
        seen.extend(ids.tolist())
        return (model(inputs) - targets).square().mean()

    with CheckpointManager(directory / "checkpoints", save_best=False) as checkpoints:
        training = ElasticTraining(
            model=model,
            optimizer=optimizer,
            dataset=Numbered(),
            global_batch_size=8,
            micro_batch_size=3,
            checkpoints=checkpoints,
            num_workers=num_workers,
        )
        training.run(loss_fn, max_steps=max_steps)
    rank = os.environ.get("RANK", "0")
    (directory / f"seen-{max_steps}-{rank}.json").write_text(json.dumps(seen))
    if rank == "0":
        safetensors.torch.save_file(model.state_dict(), directory / "weights.safetensors")


if __name__ == "__main__":
    main()
