"""What one rank does in the tests of DeepSpeed engines: `main(directory, "SOURCE:LAYOUT", …)`.

For each pair it loads the state SOURCE into a new engine whose ZeRO stage and type LAYOUT names (`zero3-bf16-4`),
trains one step, and writes the state LAYOUT; beside it `LAYOUT.safetensors` with what DeepSpeed itself says its masters
and moments are. Then a second engine takes LAYOUT over, both train a step, and have to agree in every bit.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state import Captured, capture, plan_restoration
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache


class Net(nn.Module):
    """Sizes that no number of ranks divides, a parameter that does not train, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.last = nn.Linear(7, 3)
        self.norm.bias.requires_grad_(False)
        self.register_buffer("scale", torch.full((), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu()) * self.scale


def build(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def write_state(directory: Path, captured: Captured, rank: int) -> None:
    """One rank's share, as a save would write it: plain tensors by rank 0 alone, pieces by whoever has them."""
    directory.mkdir(exist_ok=True)
    shared = captured.tensors if rank == 0 else {}
    data = {**shared, **{key: piece.data for key, piece in captured.pieces.items()}}
    copies = {key: tensor.detach().clone().contiguous() for key, tensor in data.items()}
    safetensors.torch.save_file(copies, directory / f"{rank}.safetensors")
    boxes = {key: [key, list(tensor.shape), [0] * tensor.dim(), list(tensor.shape)] for key, tensor in shared.items()}
    for key, piece in captured.pieces.items():
        boxes[key] = [piece.name, piece.shape, piece.box.offsets, piece.box.shape]
    (directory / f"{rank}.json").write_text(json.dumps({"boxes": boxes, "values": captured.values}, allow_nan=False))


def read_state(directory: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """All shares put together; every element has to be there exactly once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}
    documents = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    for path, document in zip(sorted(directory.glob("*.safetensors")), documents, strict=True):
        data = safetensors.torch.load_file(path)
        for key, (name, shape, offsets, box_shape) in document["boxes"].items():
            box = Box(tuple(offsets), tuple(box_shape))
            target = tensors.setdefault(name, torch.empty(shape, dtype=data[key].dtype))
            target[box.slices_within(whole(tuple(shape)))] = data[key]
            count = seen.setdefault(name, torch.zeros(shape, dtype=torch.int64))
            count[box.slices_within(whole(tuple(shape)))] += 1
    for name, count in seen.items():
        assert (count == 1).all(), f"{name}: {count}"
    entries = {
        name: TensorEntry(dtype=DTYPE_NAMES[t.dtype], shape=tuple(t.shape), chunks=()) for name, t in tensors.items()
    }
    values = documents[0]["values"]
    manifest = Manifest(
        step=1,
        save_id="a",
        created_at=0.0,
        world_size=len(documents),
        metrics={},
        values=values,
        files={},
        tensors=entries,
    )
    return manifest, tensors


def restore(directory: Path, model, optimizer, rank: int = 0, world_size: int = 1) -> None:
    manifest, tensors = read_state(directory)
    plan = plan_restoration(manifest, model, optimizer, {}, rank=rank, world_size=world_size)
    plan.apply(
        {
            name: tensors[name][box.slices_within(whole(tuple(tensors[name].shape)))].contiguous()
            for name, box in plan.boxes.items()
        }
    )


def engine_of(layout: str, seed: int):
    import deepspeed

    stage, kind = layout.split("-")[:2]
    model = build(seed)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": int(stage.removeprefix("zero")), "stage3_param_persistence_threshold": 8},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 0.1}},
    }
    if kind == "bf16":
        config["bf16"] = {"enabled": True}
    return deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]


def train_step(engine) -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    x = x.to(next(engine.module.parameters()).dtype)
    engine.backward(engine(x).float().square().mean())
    engine.step()


def masters_and_moments(engine) -> dict[str, torch.Tensor]:
    """What DeepSpeed's own interface tells."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            found[name] = safe_get_full_fp32_param(parameter).detach().clone()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{key}.{name}"] = safe_get_full_optimizer_state(parameter, key).detach().clone()
    return found


def weights(engine) -> dict[str, torch.Tensor]:
    """What forward uses."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    partitioned = [parameter for parameter in parameters.values() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def assert_refused_in_parts(engine) -> None:
    """Its module alone, and itself as an extra, are without masters and moments."""
    for model, extra in ((engine.module, {}), (nn.Linear(1, 1), {"critic": engine})):
        with pytest.raises(CheckpointWriteError, match=r"save\(model=engine\)"):
            capture(model, None, extra)


def preload() -> None:
    """What the first engine would import on each rank: with torch's compilers it takes three seconds."""
    importlib.import_module("deepspeed.runtime.zero.muon.original_muon")


def main(root: Path, *pairs: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    for seed, pair in enumerate(pairs):
        source, layout = pair.split(":")
        engine, cache = engine_of(layout, 100 + seed), CaptureCache()
        assert_refused_in_parts(engine)
        restore(root / source, engine, engine.optimizer, rank, world_size)
        write_state(root / f"{source}-to-{layout}", capture(engine, engine.optimizer, {}, rank=rank, cache=cache), rank)
        train_step(engine)
        write_state(root / layout, capture(engine, None, {}, rank=rank, cache=cache), rank)
        told = masters_and_moments(engine)
        if rank == 0:
            safetensors.torch.save_file(told, root / f"{layout}.safetensors")
        dist.barrier()

        other = engine_of(layout, 200 + seed)
        restore(root / layout, other, other.optimizer, rank, world_size)
        for name, tensor in weights(engine).items():
            assert torch.equal(weights(other)[name], tensor), f"{layout}: {name} after loading"
        train_step(engine)
        train_step(other)
        for name, tensor in {**weights(engine), **masters_and_moments(engine)}.items():
            assert torch.equal({**weights(other), **masters_and_moments(other)}[name], tensor), f"{layout}: {name}"
        assert engine.global_steps == other.global_steps
        assert engine.get_lr() == other.get_lr()
    dist.barrier()
