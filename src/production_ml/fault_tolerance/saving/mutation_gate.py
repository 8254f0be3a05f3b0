"""The gate before the optimizer: parameters change nowhere else, so until then they may be copied behind training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.fault_tolerance.saving.staging import Transfer


class MutationGate:
    """Holds `optimizer.step()` back while a copy of what it changes is under way.

    Forward and backward read parameters; `step()` alone writes them and the optimizer's state. So a copy that begins
    when `save()` returns and ends before the next `step()` is one of a single moment, and costs training nothing where
    forward and backward take longer than it.
    """

    def __init__(self) -> None:
        self._hooks: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()
        self._transfer: Transfer | None = None
        self._pid = os.getpid()
        self.stall_seconds = 0.0
        """For how long the gate has held training up since it was last closed."""

    def guard(self, optimizers: Iterable[Optimizer]) -> None:
        """From now on these optimizers wait."""
        for optimizer in optimizers:
            if optimizer not in self._hooks:
                self._hooks[optimizer] = optimizer.register_step_pre_hook(self._pass)

    def close_for(self, transfer: Transfer) -> None:
        """Hold optimizers back until the copies of `transfer` are made."""
        self.stall_seconds = 0.0
        self._transfer = transfer

    def await_open(self) -> None:
        """Return when nothing is being copied any more."""
        if self._pid != os.getpid():
            # Forked: the thread that copies is the parent's.
            self._transfer = None
        if self._transfer is not None:
            started = SYSTEM_CLOCK.monotonic_seconds()
            self._transfer.let_change()
            self.stall_seconds += SYSTEM_CLOCK.monotonic_seconds() - started
            self._transfer = None

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()

    def _pass(self, *_: Any) -> None:
        self.await_open()


def hooked(thing: Any) -> Optimizer | None:
    """The optimizer whose steps can be hooked: a wrapper such as Accelerate's has no hooks but those of what it wraps.

    None where there is none, as in DeepSpeed's.
    """
    while isinstance(thing, Optimizer):
        if hasattr(thing, "_optimizer_step_pre_hooks"):
            return thing
        thing = getattr(thing, "optimizer", None)
    return None


def guarded_tensors(optimizers: Iterable[Optimizer]) -> set[int]:
    """The `id`s of the tensors that these optimizers change and nothing else does."""
    guarded: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            guarded.update(map(id, group["params"]))
        for held in optimizer.state.values():
            guarded.update(map(id, held.values()))
    return guarded
