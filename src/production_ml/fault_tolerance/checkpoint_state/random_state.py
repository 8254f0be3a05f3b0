"""The random generators of one rank, Python's, NumPy's and torch's: a resumed run draws the numbers that were next."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_state.mismatch import mismatch
from production_ml.storage.hashing import hash_bytes

_LOG: Final = logging.getLogger(__name__)
_TORCH_SEED_BITS: Final = 63


class RandomState:
    """The state of `random`, of NumPy's global generator, and of torch's on the CPU and every visible CUDA device.

    `CheckpointManager` saves and restores it by itself, for each rank its own. Use this class where something else is
    to keep the state, or where it is to be restored at another point: it may be given as an extra too.

    A rank that the checkpoint does not know, because it was saved by fewer ranks, gets seeds that follow from rank 0's
    state and its own rank: two starts from one checkpoint draw the same, and two ranks do not.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values, arrays and CPU tensors, which nothing else holds."""
        version, words, gauss = random.getstate()
        return {
            "python": {"version": version, "words": np.array(words, dtype=np.uint32), "gauss": gauss},
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            # A process that has not used CUDA is not made to start it for this.
            "cuda": torch.cuda.get_rng_state_all() if _uses_cuda() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all generators. CUDA devices that this process does not have, or the checkpoint not, are left out.

        Raises:
            CheckpointMismatchError: NumPy here does not know the kind of generator that was saved.
        """
        python = state["python"]
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        _set_numpy_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            for device, saved in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
                torch.cuda.set_rng_state(saved, device)

    def load_rank_states(self, states: Sequence[Mapping[str, Any] | None], *, rank: int, world_size: int) -> None:
        """Set all generators from what another number of ranks saved."""
        own = states[rank] if rank < len(states) else None
        if own is not None:
            self.load_state_dict(own)
            return
        source = next((state for state in states if state is not None), None)
        if source is None:
            return
        _seed_all(derived_seed(source, rank))
        log_event(
            _LOG,
            "random_state_derived",
            f"Rank {rank} is new to the checkpoint of {len(states)} ranks: its random generators are seeded from "
            "rank 0's saved state and its own rank",
            rank=rank,
            world_size=world_size,
            saved_world_size=len(states),
        )


def derived_seed(state: Mapping[str, Any], rank: int) -> int:
    """A seed of 63 bits that follows from a saved state and a rank alone."""
    generator = state["torch"].numpy().tobytes()
    words = state["python"]["words"].tobytes()
    return int(hash_bytes(generator + words + f"rank {rank}".encode()), 16) & ((1 << _TORCH_SEED_BITS) - 1)


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _set_numpy_state(state: Mapping[str, Any]) -> None:
    name = state["bit_generator"]
    if name != type(get_bit_generator()).__name__:
        kind = getattr(np.random, name, None)
        if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
            raise mismatch(f"NumPy's generator was saved as a {name}, which NumPy {np.__version__} does not know.")
        set_bit_generator(kind())
    np.random.set_state(dict(state))


def _seed_all(seed: int) -> None:
    """Seed every generator of this process; NumPy's stays of the kind that it is."""
    random.seed(seed)
    set_bit_generator(type(get_bit_generator())(seed))
    torch.manual_seed(seed)  # on all devices; where CUDA is not in use yet, as soon as it is
