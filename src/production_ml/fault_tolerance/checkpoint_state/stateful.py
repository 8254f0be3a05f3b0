"""What has a state of its own to save: the one promise that all objects beside model and optimizer make."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An LR scheduler, a sampler, a scaler: what gives its state as plain values and takes it back."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...
