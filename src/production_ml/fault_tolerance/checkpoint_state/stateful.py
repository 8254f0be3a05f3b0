"""What has a state of its own to save: the one promise that all objects beside model and optimizer make."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from production_ml.core.errors import ConfigError


@runtime_checkable
class Stateful(Protocol):
    """An LR scheduler, a sampler, a scaler: what gives its state as plain values and takes it back."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def loadable(name: str, target: Any) -> Stateful:
    """The extra of that name, which takes its state back in place.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(target, Stateful):
        raise ConfigError(
            name,
            target,
            "only objects with state_dict() and load_state_dict() are loaded in place",
            cure="Plain values come back in what load_latest returns: state[name].",
        )
    return target
