"""Measure the newest checkpoint on the test split, and export it as a package that a server can load.

python evaluate.py --data digits.csv --checkpoints checkpoints --package package
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from data import read_table
from model import DigitsCNN

from production_ml.fault_tolerance import CheckpointManager
from production_ml.mlops.model_export import export_onnx
from production_ml.storage.hashing import hash_file


@torch.no_grad()
def main() -> None:
    options = parse_options()
    network = DigitsCNN(options.width)
    state = CheckpointManager(options.checkpoints).load_latest(network)
    if state["step"] == 0:
        raise SystemExit(f"{options.checkpoints}: no good checkpoint to evaluate; train first")
    test = read_table(options.data, "test")
    logits = network.eval()(test.pixels)
    metrics = {
        "accuracy": (logits.argmax(dim=1) == test.labels).float().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, test.labels).item(),
    }
    package = export_onnx(
        network,
        [test.pixels[:2]],
        options.package,
        name=options.name,
        input_names=["pixels"],
        output_names=["logits"],
        metadata={"step": state["step"], "dataset": hash_file(options.data), "metrics": metrics},
    )
    found = {"step": state["step"], "examples": len(test), "metrics": metrics, "content_hash": package.content_hash}
    print(json.dumps(found))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the table that data.py writes")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--package", type=Path, default=Path("package"), help="the directory to export to")
    parser.add_argument("--name", default="digits", help="the model's name in the registry")
    parser.add_argument("--width", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
