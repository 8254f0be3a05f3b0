"""The gate before the optimizer: parameters change nowhere else, so until then they may be copied behind training."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
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
        self._hook: RemovableHandle | None = None
        self._transfer: Transfer | None = None
        self._pid = os.getpid()
        self.stall_seconds = 0.0
        """For how long the gate has held training up since it was last closed."""

    def guard(self) -> None:
        """From now on every optimizer of this process waits.

        Not only those that the saves are told of: another one over the same weights may step, and a fused one does so
        without torch counting the change.
        """
        if self._hook is None:
            gate = weakref.ref(self)

            def wait(*_: Any) -> None:
                if (closed := gate()) is not None:
                    closed.await_open()

            self._hook = register_optimizer_step_pre_hook(wait)
            weakref.finalize(self, self._hook.remove)

    def close_for(self, transfer: Transfer) -> None:
        """Hold optimizers back until the copies of `transfer` are made."""
        self.stall_seconds = 0.0
        self._transfer = transfer

    def open(self) -> None:
        """Hold nobody back: the copies will not be made."""
        self._transfer = None

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
        """Take the hook out again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


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
