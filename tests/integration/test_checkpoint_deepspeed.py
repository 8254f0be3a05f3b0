"""A DeepSpeed engine's state moves between ZeRO stages, numbers of ranks and a plain module, bit by bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import safetensors.torch
import torch

from production_ml.fault_tolerance.checkpoint_state import capture

SCRIPT = Path(__file__).with_name("checkpoint_deepspeed_script.py")
_spec = importlib.util.spec_from_file_location("checkpoint_deepspeed_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def plain(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = script.build(seed)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_every_bit_survives_between_stages_ranks_and_a_plain_module(ranks, tmp_path, assert_same):
    model, optimizer = plain(0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    script.write_state(tmp_path / "plain", capture(model, optimizer, {}), 0)
    two = ["plain:zero1-fp32-2", "zero1-fp32-2:zero3-bf16-2", "zero3-bf16-2:zero2-bf16-2"]
    one = ["zero3-bf16-2:zero1-fp32-1"]
    four = ["zero2-bf16-2:zero3-fp32-4"]

    ranks(SCRIPT, (2, *two), (1, *one), (4, *four))

    for pair in two + one + four:
        source, layout = pair.split(":")
        _, saved = script.read_state(tmp_path / source)
        _, found = script.read_state(tmp_path / f"{source}-to-{layout}")
        moments = {name: tensor for name, tensor in saved.items() if name.startswith(("model.", "optimizer."))}
        # What does not train has the engine's own type; it is 0 in either.
        frozen = {"model.norm.bias", "model.scale"}
        found = {name: tensor for name, tensor in found.items() if name in moments and name not in frozen}
        assert_same(found, {name: moments[name] for name in moments if name not in frozen}, pair)
        target, target_optimizer = plain(9)
        script.restore(tmp_path / layout, target, target_optimizer)
        told = safetensors.torch.load_file(tmp_path / f"{layout}.safetensors")
        state = {name: value for name, value in target.named_parameters() if value.requires_grad}
        for name, parameter in list(state.items()):
            state |= {f"{key}.{name}": target_optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
        assert_same(state, told, f"{layout} to plain")
