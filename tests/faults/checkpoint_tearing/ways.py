"""Ways to train. Each changes its state at other moments and by other means; each can say what all of it is now."""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_BATCH: Final = 4


class Journal:
    """State on the CPU that changes in place; what `state_dict` gives is shared with it, as a careless class does."""

    def __init__(self) -> None:
        self.seen: list[int] = [0] * 50
        self.counts = np.zeros(20_000)
        self.mean = torch.zeros(20_000)
        self.nested: dict[str, Any] = {"step": 0, "shuffle": [list(range(50))]}

    def turn(self, step: int) -> None:
        """Every value in it becomes `step`."""
        self.seen[:] = [step] * 50
        self.counts += step - self.counts[0]
        self.mean.fill_(step)
        self.nested["step"] = step
        self.nested["shuffle"][0][:] = [step] * 50

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Way:
    """Plain SGD with momentum, over a model with BatchNorm.

    Args:
        wrap: What is done to the model before the optimizer is made, such as DDP.
    """

    def __init__(self, wrap: Any = None) -> None:
        torch.manual_seed(0)
        self.bare = self.build()
        self.model = wrap(self.bare) if wrap else self.bare
        self.optimizer = self.make_optimizer()
        self.journal = Journal()
        self.position = torch.zeros(1000, dtype=torch.int64)
        self.table = np.zeros(1000, dtype=np.float32)
        self.list = [0, [0, {"deep": 0}]]
        self.step_number = 0

    def build(self) -> nn.Module:
        """2 MB of parameters: a copy takes about as long as a step."""
        layers: list[nn.Module] = [nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU()]
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 256)]
        return nn.Sequential(*layers)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.bare.parameters(), lr=1e-3, momentum=0.9)

    def train_step(self) -> None:
        """Forward, which changes the BatchNorm buffers; backward; optimizer; then everything on the CPU."""
        self.optimizer.zero_grad()
        self.model(torch.randn(_BATCH, 256)).square().mean().backward()
        self.update()
        self.after_update()
        self.step_number += 1
        self.turn(self.step_number)

    def update(self) -> None:
        self.optimizer.step()

    def after_update(self) -> None:
        """What this way does behind the optimizer's back."""

    def right_after_save(self) -> None:
        """What changes before any forward or optimizer step."""
        self.turn(-self.step_number)

    def turn(self, value: int) -> None:
        """Every value outside of the model becomes `value`."""
        self.journal.turn(value)
        self.position.fill_(value)
        self.table[:] = value
        self.list[0] = value
        self.list[1][:] = [value, {"deep": value}]
        self.optimizer.param_groups[0]["lr"] = 1e-3 + abs(value) * 1e-9

    def objects(self) -> dict[str, Any]:
        """What is saved beside model and optimizer, and loaded in place."""
        return {"journal": self.journal}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those whose state is saved."""
        return {"optimizer": self.optimizer}

    def values(self) -> dict[str, Any]:
        """What is saved by value."""
        return {"position": self.position, "table": self.table, "list": self.list}

    def save(self, manager: Any, step: int) -> None:
        manager.save(model=self.model, optimizer=self.optimizer, step=step, **self.objects(), **self.values())

    def load(self, manager: Any) -> int:
        """The step that was loaded."""
        state = manager.load_latest(self.model, self.optimizer, **self.objects())
        self.position, self.table, self.list = state["position"], state["table"], state["list"]
        return int(state["step"])

    def snapshot(self) -> dict[str, Any]:
        """All of the state, copied now."""
        found: dict[str, Any] = {f"model.{name}": value for name, value in self.bare.state_dict().items()}
        for name, optimizer in self.optimizers().items():
            found |= _optimizer_values(name, optimizer)
        for name, held in self.objects().items():
            if not isinstance(held, torch.optim.Optimizer):
                found |= {f"{name}.{key}": value for key, value in held.state_dict().items()}
        return copy.deepcopy(found | self.values())


class Adam(Way):
    """Adam, whose moments are twice the parameters."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.bare.parameters(), lr=1e-3)


class FusedAdam(Way):
    """One kernel changes all parameters at once."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.bare.parameters(), lr=1e-3, fused=True)


class Ema(Adam):
    """An average of the parameters that is brought up to date after the step, when the optimizer is done."""

    def __init__(self, wrap: Any = None) -> None:
        super().__init__(wrap)
        self.ema = AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def after_update(self) -> None:
        self.ema.update_parameters(self.bare)

    def right_after_save(self) -> None:
        super().right_after_save()
        self.ema.update_parameters(self.bare)

    def objects(self) -> dict[str, Any]:
        return {**super().objects(), "ema": self.ema}


class InPlace(Way):
    """Parameters scaled by hand, which no optimizer knows of."""

    def after_update(self) -> None:
        with torch.no_grad():
            for parameter in self.bare.parameters():
                parameter.mul_(0.999)

    def right_after_save(self) -> None:
        super().right_after_save()
        self.after_update()


class InPlaceData(Way):
    """Parameters changed through `.data`, which even autograd does not know of."""

    def after_update(self) -> None:
        for parameter in self.bare.parameters():
            parameter.data.add_(0.001)

    def right_after_save(self) -> None:
        super().right_after_save()
        self.after_update()


class ThroughNumpy(Way):
    """Parameters written through an array that shares their memory: nothing in torch sees it."""

    def after_update(self) -> None:
        for parameter in self.bare.parameters():
            parameter.detach().numpy()[...] += 0.001

    def right_after_save(self) -> None:
        super().right_after_save()
        self.after_update()


class ModelAlone(Way):
    """The manager is given no optimizer, so it cannot know when one steps."""

    def save(self, manager: Any, step: int) -> None:
        manager.save(model=self.model, step=step, **self.objects(), **self.values())

    def load(self, manager: Any) -> int:
        state = manager.load_latest(self.model, **self.objects())
        self.position, self.table, self.list = state["position"], state["table"], state["list"]
        return int(state["step"])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}


class NewData(Way):
    """Parameters that get another storage, as weights that are swapped in for an evaluation do."""

    def right_after_save(self) -> None:
        super().right_after_save()
        for parameter in self.bare.parameters():
            old = parameter.data
            parameter.data = old * 0.9
            old.zero_()


class Clipped(Adam):
    """Gradients clipped by norm and parameters by value."""

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.bare.parameters(), 0.1)
        super().update()
        with torch.no_grad():
            for parameter in self.bare.parameters():
                parameter.clamp_(-0.05, 0.05)


class TwoOptimizers(Way):
    """Each has half of the parameters; only one of them is the manager's `optimizer`."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters = list(self.bare.parameters())
        half = len(parameters) // 2
        self.second = torch.optim.Adam(parameters[half:], lr=1e-3)
        return torch.optim.SGD(parameters[:half], lr=1e-3, momentum=0.9)

    def update(self) -> None:
        # The other one first: a save that waits for the manager's optimizer alone would come too late.
        self.second.step()
        self.optimizer.step()
        self.second.zero_grad()

    def objects(self) -> dict[str, Any]:
        return {**super().objects(), "second": self.second}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers(), "second": self.second}


class Frozen(Adam):
    """Half of the parameters are frozen, and changed by hand as a target network's are."""

    def build(self) -> nn.Module:
        model = super().build()
        for parameter in list(model.parameters())[:4]:
            parameter.requires_grad_(False)
        return model

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.bare.parameters() if p.requires_grad], lr=1e-3)

    def after_update(self) -> None:
        with torch.no_grad():
            for parameter in self.bare.parameters():
                if not parameter.requires_grad:
                    parameter.copy_(torch.full_like(parameter, self.step_number))

    def right_after_save(self) -> None:
        super().right_after_save()
        self.step_number += 1
        self.after_update()


class ForwardOnly(Way):
    """Forward passes without a step, as for a warm-up of BatchNorm: buffers alone change."""

    def right_after_save(self) -> None:
        super().right_after_save()
        with torch.no_grad():
            for _ in range(3):
                self.bare(torch.randn(_BATCH, 256))


class Reloaded(Adam):
    """Weights and moments loaded over the live ones, as when the best epoch is gone back to."""

    def __init__(self, wrap: Any = None) -> None:
        super().__init__(wrap)
        self.kept = copy.deepcopy(self.bare.state_dict())

    def right_after_save(self) -> None:
        super().right_after_save()
        self.bare.load_state_dict(self.kept)
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()


WAYS: Final[dict[str, type[Way]]] = {
    "sgd": Way,
    "adam": Adam,
    "fused-adam": FusedAdam,
    "ema": Ema,
    "in-place": InPlace,
    "in-place-data": InPlaceData,
    "through-numpy": ThroughNumpy,
    "model-alone": ModelAlone,
    "new-data": NewData,
    "clipped": Clipped,
    "two-optimizers": TwoOptimizers,
    "frozen": Frozen,
    "forward-only": ForwardOnly,
    "reloaded": Reloaded,
}


def _optimizer_values(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    found = {f"{prefix}.lr": state["param_groups"][0]["lr"]}
    for index, entries in state["state"].items():
        found |= {f"{prefix}.{index}.{key}": value for key, value in entries.items()}
    return found
