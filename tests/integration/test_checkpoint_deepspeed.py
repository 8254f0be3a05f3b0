"""A DeepSpeed engine's state moves between ZeRO stages, numbers of ranks and a plain module, bit by bit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch

from production_ml.fault_tolerance.checkpoint_state import capture

SCRIPT = Path(__file__).with_name("checkpoint_deepspeed_script.py")
_spec = importlib.util.spec_from_file_location("checkpoint_deepspeed_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(root: Path, world_size: int, *pairs: str) -> None:
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(world_size):
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(world_size)}
            output = stack.enter_context(open(root / f"output-{world_size}-{rank}.txt", "w"))
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(root), *pairs],
                env={**os.environ, **meeting_point, **places, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        exit_codes = [process.wait(timeout=280) for process in processes]
    outputs = [path.read_text() for path in sorted(root.glob(f"output-{world_size}-*.txt"))]
    assert exit_codes == [0] * world_size, "\n".join(outputs)


def plain(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = script.build(seed)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    assert set(found) == set(expected), what
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{what}: {name}"


def test_every_bit_survives_between_stages_ranks_and_a_plain_module(tmp_path):
    model, optimizer = plain(0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    script.write_state(tmp_path / "plain", capture(model, optimizer, {}), 0)
    two = ["plain:zero1-fp32-2", "zero1-fp32-2:zero3-bf16-2", "zero3-bf16-2:zero2-bf16-2"]
    one = ["zero3-bf16-2:zero1-fp32-1"]
    four = ["zero2-bf16-2:zero3-fp32-4"]

    run_ranks(tmp_path, 2, *two)
    run_ranks(tmp_path, 1, *one)
    run_ranks(tmp_path, 4, *four)

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
