"""A training whose whole state follows from its step, so that whoever loads it can compute what it has to be."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo  # the first optimizer of a process imports it, for half a second: better once than in every fork
from torch import nn


class Notes:
    """State that is not tensors, kept by an object of its own as a sampler or a scheduler keeps it."""

    def __init__(self) -> None:
        self.step, self.who = 0, 0
        self.history: list[Any] = []
        self.table = torch.zeros(4, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "who": self.who, "history": list(self.history), "table": self.table.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.who = int(state["step"]), int(state["who"])
        self.history, self.table = list(state["history"]), state["table"]


class Training:
    """A model with buffers, Adam with moments, and notes.

    Args:
        wrap: What is done to the model before the optimizer is made, such as sharding it.
    """

    def __init__(self, wrap: Any = None) -> None:
        self.model: nn.Module = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.Linear(96, 32))
        if wrap is not None:
            self.model = wrap(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.notes = Notes()

    def go_to(self, step: int, who: int = 0) -> None:
        """Become what this training is at `step`; two trainings with another `who` differ in every tensor."""
        with torch.no_grad():
            for index, parameter in enumerate(self.model.parameters()):
                shape = parameter.shape
                _fill(parameter, _values(step, who, index, shape))
                state = self.optimizer.state[parameter]
                state["step"] = torch.tensor(float(step))
                for offset, moment in ((1000, "exp_avg"), (2000, "exp_avg_sq")):
                    if moment not in state:
                        state[moment] = torch.zeros_like(parameter)
                    _fill(state[moment], _values(step, who, index + offset, shape))
            for index, (name, buffer) in enumerate(self.model.named_buffers()):
                if name.endswith("num_batches_tracked"):
                    buffer.fill_(step * 10 + who)
                else:
                    buffer.copy_(_values(step, who, index + 3000, buffer.shape))
        self.optimizer.param_groups[0]["lr"] = 0.001 * step
        self.notes.step, self.notes.who = step, who
        self.notes.history = [step, -step, f"step {step}", {"who": who}]
        self.notes.table = _values(step, who, 4000, torch.Size([4])).double()

    def differences(self, step: int, who: int) -> list[str]:
        """What is not, bit by bit, as it was at `step`."""
        truth = Training()
        truth.go_to(step, who)
        found = [
            name
            for name, tensor in truth.model.state_dict().items()
            if not _same(tensor, self.model.state_dict()[name])
        ]
        for (name, parameter), own in zip(truth.model.named_parameters(), self.model.parameters(), strict=True):
            state, loaded = truth.optimizer.state[parameter], self.optimizer.state[own]
            found += [f"{name}.{key}" for key in state if key not in loaded or not _same(state[key], loaded[key])]
        if self.optimizer.param_groups[0]["lr"] != truth.optimizer.param_groups[0]["lr"]:
            found.append("lr")
        if (self.notes.step, self.notes.who, self.notes.history) != (step, who, truth.notes.history):
            found.append("notes")
        if not _same(self.notes.table, truth.notes.table):
            found.append("notes.table")
        return found


def _values(step: int, who: int, index: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed((step * 10 + who) * 10_000 + index))


def _fill(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Rows are sharded evenly over the ranks where the tensor is a DTensor."""
    local = getattr(tensor, "to_local", None)
    if local is None:
        tensor.copy_(values)
        return
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    local().copy_(values.chunk(size)[rank])


def _same(left: torch.Tensor, right: Any) -> bool:
    return (
        isinstance(right, torch.Tensor)
        and left.dtype == right.dtype
        and left.shape == right.shape
        and left.numpy().tobytes() == right.detach().numpy().tobytes()
    )
