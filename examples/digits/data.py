"""The digits as a table: written once from scikit-learn's scans, then read by training and evaluation.

Run it to write the table: python data.py digits.csv
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

PIXELS = 64
SPLIT_SEED = 20
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Examples:
    """Pixels [examples, 64] from 0 to 16, and labels [examples] from 0 to 9."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def write_table(path: Path) -> int:
    """Write split, label and pixels of all scans as CSV; returns how many there are."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    names = _splits(len(scans.target))
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "label", *(f"pixel_{number:02d}" for number in range(PIXELS))])
        for split, label, pixels in zip(names, scans.target, scans.data, strict=True):
            table.writerow([split, label, *pixels.astype(int)])
    return len(names)


def read_table(path: Path, split: str) -> Examples:
    """The examples of one split: train, validation or test."""
    with path.open(newline="") as file:
        rows = [[int(cell) for cell in row[1:]] for row in csv.reader(file) if row[0] == split]
    table = torch.tensor(rows, dtype=torch.float32)
    return Examples(pixels=table[:, 1:].contiguous(), labels=table[:, 0].long())


def batches(examples: Examples, batch_size: int, seed: int, first_step: int) -> Iterator[tuple[int, Examples]]:
    """Endless `(step, global batch)`, from `first_step` on.

    Which examples a step sees depends on the seed and the step alone, so that a resumed run goes on with exactly the
    batches that it would have seen, whatever the number of workers.
    """
    per_epoch = len(examples) // batch_size
    step = first_step
    while True:
        epoch, first_batch = divmod(step, per_epoch)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for batch in order[: per_epoch * batch_size].split(batch_size)[first_batch:]:
            yield step, Examples(examples.pixels[batch], examples.labels[batch])
            step += 1


def share(batch: Examples, rank: int, world_size: int) -> Examples:
    """The part of a global batch that one rank computes."""
    return Examples(batch.pixels[rank::world_size], batch.labels[rank::world_size])


def _splits(count: int) -> list[str]:
    names = [name for name, part in SHARES.items() for _ in range(round(part * count))]
    names = (names + ["test"] * count)[:count]
    random.Random(SPLIT_SEED).shuffle(names)  # noqa: S311 - a split, not a secret
    return names


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "digits.csv")
    print(f"{target}: {write_table(target)} scans")
