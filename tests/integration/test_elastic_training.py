"""ElasticTraining under the launcher: the number of ranks changes amid an epoch, and what is learned does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch

SCRIPT = Path(__file__).with_name("elastic_training_script.py")
LAUNCH = [sys.executable, "-m", "production_ml.cli.main", "launch", "--quiet"]


def train(directory: Path, *, ranks: int, max_steps: int, num_workers: int) -> list[int]:
    """Go on in `directory`; which samples were seen, by all ranks."""
    directory.mkdir(exist_ok=True)
    command = [*LAUNCH, "--nproc-per-node", str(ranks), "--run-dir", str(directory / f"run-{max_steps}"), str(SCRIPT)]
    arguments = [str(directory), str(max_steps), str(num_workers)]
    done = subprocess.run([*command, *arguments], env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        sample
        for rank in range(ranks)
        for sample in json.loads((directory / f"seen-{max_steps}-{rank}.json").read_text())
    ]


def test_ranks_that_come_and_go_amid_an_epoch_change_neither_the_samples_nor_the_weights(tmp_path):
    expected = train(tmp_path / "alone", ranks=1, max_steps=14, num_workers=0)

    elastic = tmp_path / "elastic"
    seen = train(elastic, ranks=3, max_steps=3, num_workers=0)
    seen += train(elastic, ranks=2, max_steps=9, num_workers=2)
    seen += train(elastic, ranks=1, max_steps=14, num_workers=1)

    # 50 samples in batches of 8: two epochs are 14 steps.
    assert sorted(expected) == sorted([*range(50), *range(50)])
    assert sorted(seen) == sorted(expected)
    weights = [safetensors.torch.load_file(tmp_path / name / "weights.safetensors") for name in ("alone", "elastic")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-6)
