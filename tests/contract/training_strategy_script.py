"""What one rank does in the contract of training strategies: `training_strategy_script.py KIND PIECES OUTPUT`.

It trains three steps of a small model on its share of each batch, cut into PIECES, and rank 0 writes the weights.
"""

from __future__ import annotations

import os
import sys

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from production_ml.fault_tolerance.farewell import end_well
from production_ml.training.strategies import STRATEGIES, choose_strategy

STEPS, GLOBAL_BATCH, FEATURES = 3, 12, 5


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1))


def prepared(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if kind != "deepspeed":
        return model, optimizer
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 1},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, optimizer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous().clone()


def main() -> None:
    kind, pieces, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind != "plain":
        dist.init_process_group("gloo")
        end_well()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if kind != "plain" else (0, 1)
    strategy = STRATEGIES.load(kind)()
    model, optimizer = prepared(kind)
    model = strategy.prepare(model, optimizer)
    assert choose_strategy(model) == kind, choose_strategy(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randn(GLOBAL_BATCH, FEATURES, generator=generator)
        share = batch[rank::world_size]
        cut = share.tensor_split(pieces)
        for index, piece in enumerate(cut):
            with strategy.accumulating(model, is_last=index == len(cut) - 1):
                loss = (model(piece) - piece.sum(1, keepdim=True)).square().mean() * len(piece) / len(share)
                strategy.backward(model, loss)
        strategy.step(model, optimizer)
    weights = {name.removeprefix("module."): whole(value) for name, value in model.state_dict().items()}
    if rank == 0:
        safetensors.torch.save_file(weights, output)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main()
