"""The states that are saved: transformers with Adam state of a given size, and bags of a given number of tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

GIB = 1 << 30
MIB = 1 << 20
_LAYERS = 12
_WIDTHS = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 2048)
_BYTES_PER_PARAMETER = 12
"""float32 weight, exp_avg and exp_avg_sq."""
_SEQUENCE = 32


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query_key_value(self.before_attention(hidden)).chunk(3, dim=-1)
        hidden = hidden + self.project(functional.scaled_dot_product_attention(query, key, value))
        return hidden + self.narrow(functional.gelu(self.widen(self.before_mlp(hidden))))


class Transformer(nn.Module):
    """Twelve blocks or so of the widest size that fits; the embedding takes what is left of the size."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        parameters = size_bytes // _BYTES_PER_PARAMETER
        width = max((w for w in _WIDTHS if _LAYERS * _block_parameters(w) <= parameters), default=_WIDTHS[0])
        layers = max(1, int(0.97 * parameters) // _block_parameters(width))
        rows = max(2, (parameters - layers * _block_parameters(width)) // width)
        self.embedding = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.square().mean()


def _block_parameters(width: int) -> int:
    return 12 * width * width + 13 * width


class Bag(nn.Module):
    """Parameters of equal size and nothing else, in groups of a hundred."""

    def __init__(self, count: int, numel: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList(
            nn.ParameterList(
                torch.empty(_shape(numel)).uniform_(0.1, 0.2) for _ in range(begin, min(begin + 100, count))
            )
            for begin in range(0, count, 100)
        )


def _shape(numel: int) -> tuple[int, ...]:
    """Two dimensions where it can be halved often, so that ranks can share it."""
    return (numel // 64, 64) if numel % 64 == 0 and numel >= 4096 else (numel,)


@dataclass(slots=True)
class Training:
    """A model and its optimizer, with full Adam state."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tokens: torch.Tensor | None = None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor of the state, live."""
        yield from self.model.state_dict(keep_vars=True).values()
        for held in self.optimizer.state.values():
            yield from (value for value in held.values() if isinstance(value, torch.Tensor))

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    @property
    def tensor_count(self) -> int:
        return sum(1 for _ in self.tensors())

    def forward_backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)  # the gradients' memory stays warm
        self.model(self.tokens).backward()


def transformer(size_bytes: int, device: str = "cpu") -> Training:
    """A transformer whose weights and moments have `size_bytes`."""
    torch.manual_seed(0)
    model = Transformer(size_bytes)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.1, 0.2)  # no zeros: a load of nothing must be told from a load
    return with_adam_state(model.to(device))


def bag(size_bytes: int, tensors: int) -> Training:
    """About `tensors` tensors of weights, moments and step counts; they have `size_bytes`."""
    torch.manual_seed(0)
    count = max(1, math.ceil(tensors / 4))
    return with_adam_state(Bag(count, max(1, size_bytes // _BYTES_PER_PARAMETER // count)))


def with_adam_state(model: nn.Module) -> Training:
    """Adam's moments as they are after a step, without the memory of gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    give_state(optimizer)
    return Training(model, optimizer)


def give_state(optimizer: torch.optim.Optimizer) -> None:
    """What the first step would make."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {key: torch.full_like(parameter.detach(), 1e-3) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}


def give_batch(training: Training, *, seconds: float) -> float:
    """Choose a batch whose forward and backward last at least `seconds`; returns how long they do."""
    device = next(training.model.parameters()).device
    batch = 1
    while True:
        training.tokens = torch.zeros(batch, _SEQUENCE, dtype=torch.long, device=device)
        training.forward_backward()
        begin = time.perf_counter()
        training.forward_backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        measured = time.perf_counter() - begin
        if measured >= seconds:
            return measured
        batch = max(batch + 1, min(4 * batch, math.ceil(1.1 * batch * seconds / measured)))
