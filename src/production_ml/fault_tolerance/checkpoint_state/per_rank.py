"""State that differs by rank: saved by each, given back to the same one, and to all where their number changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.distributed.tensor import DTensor

from production_ml.core.errors import CheckpointWriteError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree, tensor_names
from production_ml.fault_tolerance.checkpoint_state.mismatch import mismatch
from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState
from production_ml.fault_tolerance.checkpoint_state.stateful import Stateful, loadable

_LOG: Final = logging.getLogger(__name__)
_AUTOMATIC: Final = "$random"
"""Where the random state stands that is saved unasked: no extra can have this name."""


class PerRank:
    """Marks an extra as this rank's own: `save(..., loader=PerRank(loader))`.

    Plain extras are the same on all ranks, and rank 0's are saved. One that is marked is saved by every rank. Loading

    - with the same number of ranks gives each rank its own back: in place where an object is passed to `load_latest`
      under the same name, else as `state[name]`;
    - with another number loads nothing in place, for only the user knows how to share the states out anew:
      `state[name]` is then a `RankStates`, the list of all ranks' states. An object that has a method
      `load_rank_states(states, *, rank, world_size)` gets that list there, and is loaded in place after all.

    Args:
        value: A plain value, or an object with `state_dict()` and `load_state_dict()`.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class RankStates(list[Any]):
    """The states of all ranks that saved, in rank order; None for a rank that had none of this name."""


def is_per_rank(value: Any) -> bool:
    """Whether an extra is saved by every rank; random state is never anything else."""
    return isinstance(value, PerRank | RandomState)


def unmarked(value: Any) -> Any:
    """What a `PerRank` marks; anything else as it is."""
    return value.value if isinstance(value, PerRank) else value


def capture_rank_state(
    extra: Mapping[str, Any], *, rank: int, random_state: bool = True
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """This rank's own state: the extras that are marked, and its random generators.

    Args:
        extra: All extras.
        rank: This rank.
        random_state: Save the random generators too.

    Returns:
        JSON by the names of the extras, and the tensors in it, which this rank alone writes.

    Raises:
        CheckpointWriteError: Something in it cannot be saved.
    """
    own = {name: unmarked(value) for name, value in extra.items() if is_per_rank(value)}
    values: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        state = value.state_dict() if isinstance(value, Stateful) else value
        values[name] = encode_tree(state, f"rank-{rank}.extra.{name}", tensors)
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            raise CheckpointWriteError(
                f"{name} is sharded over the ranks (a DTensor), which PerRank state cannot be.",
                cure="Pass it without PerRank: each rank then writes the part that it holds.",
            )
    if random_state:
        values[_AUTOMATIC] = encode_tree(RandomState().state_dict(), f"rank-{rank}.random", tensors)
    return values, tensors


class RankRestoration:
    """Gives this rank its own state back, or that of all ranks where their number has changed.

    Args:
        manifest: The checkpoint's.
        extra: Objects whose state is to be loaded in place, under the names they were saved with; others are ignored.
        rank: This rank.
        world_size: The number of ranks now.
        random_state: Restore the random generators too.

    Raises:
        CheckpointMismatchError: This rank saved no state of a name in `extra`, or it is the same for all ranks.
        ConfigError: An extra cannot have its state loaded.
    """

    def __init__(
        self, manifest: Manifest, extra: Mapping[str, Any], *, rank: int, world_size: int, random_state: bool = True
    ) -> None:
        self._saved: Sequence[Mapping[str, Any]] = [values or {} for values in manifest.rank_values]
        self._rank, self._world_size = rank, world_size
        self.names = frozenset(name for values in self._saved for name in values) - {_AUTOMATIC}
        self._targets = {name: self._target(name, value) for name, value in extra.items() if name in self.names}
        for name, value in extra.items():
            if is_per_rank(value) and name not in self.names:
                raise mismatch(
                    f"The checkpoint holds no {name!r} of each rank.",
                    cure=f"Call load_latest() without {name}, or pass it without PerRank if it was saved so.",
                )
        self._random = RandomState() if random_state and any(_AUTOMATIC in values for values in self._saved) else None

    @property
    def is_same_world(self) -> bool:
        """Whether as many ranks load as saved."""
        return len(self._saved) == self._world_size

    def wanted(self) -> set[str]:
        """The names of the tensors that this rank has to read."""
        encoded = [self._saved[source].get(name) for name in self.names for source in self._sources()]
        if self._random is not None:
            encoded += [values.get(_AUTOMATIC) for values in self._random_sources().values()]
        return set(tensor_names(encoded))

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Load what is loaded in place, and the random generators.

        Returns:
            For each name the object that was loaded, this rank's value, or all ranks' as `RankStates`.

        Raises:
            CheckpointMismatchError: An object refuses its state.
        """
        return {name: self._apply_one(name, tensors) for name in sorted(self.names)}

    def apply_random(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the random generators; last of all, for other objects may draw numbers while they are loaded."""
        if self._random is None:
            return
        states: list[Any] = [None] * len(self._saved)
        for source, values in self._random_sources().items():
            states[source] = decode_tree(values[_AUTOMATIC], tensors)
        try:
            self._random.load_rank_states(states, rank=self._rank, world_size=self._world_size)
        except Exception as problem:  # noqa: BLE001 - another torch or numpy may refuse in any way, and the model is loaded
            _LOG.warning("The random generators were not restored: %s. They go on from where they are.", problem)

    def _target(self, name: str, value: Any) -> Stateful:
        target = loadable(name, unmarked(value))
        if self.is_same_world and name not in self._saved[self._rank]:
            raise mismatch(f"Rank {self._rank} saved no {name!r}.", cure=f"Call load_latest() without {name}.")
        return target

    def _sources(self) -> Sequence[int]:
        """The ranks whose state this one needs."""
        return [self._rank] if self.is_same_world else range(len(self._saved))

    def _random_sources(self) -> dict[int, Mapping[str, Any]]:
        """Its own, or that of the first rank that has one, to derive a new one from."""
        holders = {source: values for source, values in enumerate(self._saved) if _AUTOMATIC in values}
        source = self._rank if self._rank in holders else min(holders)
        return {source: holders[source]}

    def _apply_one(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Any:
        states = RankStates([None] * len(self._saved))
        for source in self._sources():
            if name in self._saved[source]:
                states[source] = decode_tree(self._saved[source][name], tensors)
        target = self._targets.get(name)
        if target is None:
            return states[self._rank] if self.is_same_world else states
        if self.is_same_world:
            _ask(name, lambda: target.load_state_dict(states[self._rank]))
            return target
        if hasattr(target, "load_rank_states"):
            _ask(name, lambda: target.load_rank_states(states, rank=self._rank, world_size=self._world_size))
            return target
        if self._rank == 0:
            self._report_not_loaded(name)
        return states

    def _report_not_loaded(self, name: str) -> None:
        log_event(
            _LOG,
            "rank_state_not_loaded",
            f"{name!r} was saved by each of {len(self._saved)} ranks, and {self._world_size} load: it was not loaded. "
            f"state[{name!r}] holds the states of all of them, to share out anew.",
            level=logging.WARNING,
            extra=name,
            world_size=self._world_size,
            saved_world_size=len(self._saved),
        )


def _ask(name: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except Exception as problem:  # the object is the user's own, and may refuse in any way
        raise mismatch(f"{name!r} does not take the state in the checkpoint ({problem!r}).") from problem
