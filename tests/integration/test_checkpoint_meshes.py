"""A checkpoint of any mesh loads into any other, every parameter and every moment bit by bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import safetensors.torch
import torch

from production_ml.fault_tolerance import CheckpointManager

SCRIPT = Path(__file__).with_name("checkpoint_mesh_script.py")
_spec = importlib.util.spec_from_file_location("checkpoint_mesh_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def loaded_into_one_process(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = script.build(9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    CheckpointManager(checkpoint).load_latest(model, optimizer)
    return script.state_of(model, optimizer)


def test_every_bit_survives_from_one_process_over_two_and_four_ranks_and_back(ranks, tmp_path, assert_same):
    model = script.build(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        script.train_step(model, optimizer)
    with CheckpointManager(tmp_path / "plain") as manager:
        manager.save(model=model, optimizer=optimizer, step=2)
    safetensors.torch.save_file(script.state_of(model, optimizer), tmp_path / "plain.safetensors")
    two = ["plain:tp2", "plain:fsdp2", "fsdp2:ddp2"]
    four = ["tp2:tp4", "plain:fsdp-tp4", "fsdp2:hsdp4", "hsdp4:fsdp4", "fsdp-tp4:ddp4"]
    last = ["tp4:fsdp2b", "fsdp-tp4:tp2b", "hsdp4:tp2c"]

    ranks(SCRIPT, (2, *two), (4, *four), (2, *last))

    for pair in two + four + last:
        source, layout = pair.split(":")
        saved = safetensors.torch.load_file(tmp_path / f"{source}.safetensors")
        found = safetensors.torch.load_file(tmp_path / f"{source}-to-{layout}.safetensors")
        assert_same(found, saved, f"{source} to {layout}")
        trained = safetensors.torch.load_file(tmp_path / f"{layout}.safetensors")
        assert not torch.equal(trained["up.weight"], saved["up.weight"])
        assert_same(loaded_into_one_process(tmp_path / layout), trained, f"{layout} to plain")
