"""Which samples come next: one global order per epoch, whatever the number of ranks and of loading workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, TypeVar, cast

import numpy as np
from torch.utils.data import DataLoader, Sampler

from production_ml.core.errors import ConfigError
from production_ml.training.batch_plan import share_of
from production_ml.training.permutation import Permutation
from production_ml.training.ranks import rank_and_world_size

_Batch = TypeVar("_Batch")


class ElasticSampler(Sampler[list[int]]):
    """A batch sampler whose position is the number of samples that training was handed, under any world size.

    Place i of an epoch's order depends on the seed and the epoch alone. A global batch is the next `global_batch_size`
    places that are not skipped, and rank r of W takes its places m·r/W to m·(r+1)/W, rounded down, for m samples: the
    shares differ by at most one. The last batch of an epoch may be smaller. If it is smaller than the world size, a
    rank without a share loads the batch's first sample, so that it can take part in the collectives, with
    `current_weight` 0.

    Iterate `epoch(loader)`, not the loader: what workers prefetch then leaves the position alone.

    Args:
        dataset: Map-style, with a length.
        global_batch_size: Samples per step over all ranks.
        seed: Decides the order.
        drop_last: Leave out the smaller batch at the end of an epoch; it is kept by default.

    Raises:
        ConfigError: The dataset is empty, or the batch is smaller than the world size.
    """

    def __init__(self, dataset: Sized, global_batch_size: int, *, seed: int = 0, drop_last: bool = False) -> None:
        self._length = len(dataset)
        if self._length < 1:
            raise ConfigError("dataset", self._length, "has no samples")
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank_and_world_size()
        if global_batch_size < self._world_size:
            raise ConfigError(
                "global_batch_size", global_batch_size, f"is smaller than the world size, {self._world_size}"
            )
        self._end = self._length - self._length % global_batch_size if drop_last else self._length
        if self._end == 0:
            raise ConfigError("drop_last", drop_last, "leaves no batch: the dataset is smaller than one global batch")
        self._seed = seed
        self._drop_last = drop_last
        self._epoch = 0
        self._samples = 0
        self._skipped: list[tuple[int, int, int]] = []
        self._current: list[int] = []
        self._current_epoch = 0
        self._moves = 0

    @property
    def current_epoch(self) -> int:
        """The epoch that comes next or is under way, from 0."""
        return self._epoch

    @property
    def current_global_ids(self) -> list[int]:
        """The dataset's indices in the global batch that was handed out last, in order."""
        return self._ids(self._current_epoch, self._current)

    @property
    def current_ids(self) -> list[int]:
        """This rank's share of them; empty where it only keeps the others company."""
        return self._ids(self._current_epoch, self._share(self._current))

    @property
    def current_weight(self) -> float:
        """What to multiply this rank's mean loss by, so that the mean over ranks is the mean over the global batch."""
        return len(self._share(self._current)) * self._world_size / len(self._current)

    def epoch(self, loader: DataLoader[_Batch]) -> Iterator[_Batch]:
        """What is left of the current epoch; a batch counts as consumed when it is handed out.

        The position may be changed on the way: the next batch is then the one at the new position.

        Raises:
            ConfigError: The loader takes its batches from elsewhere.
        """
        if loader.batch_sampler is not self:
            cure = "Make it with DataLoader(dataset, batch_sampler=sampler)."
            raise ConfigError("loader", type(loader).__name__, "does not draw its batches from this sampler", cure=cure)
        moves = -1
        while moves != self._moves:
            moves, epoch = self._moves, self._epoch
            for places, batch in zip(self._batches(), loader, strict=True):
                self._current, self._current_epoch = places, epoch
                self._samples = places[-1] + 1
                yield cast(_Batch, batch)
                if moves != self._moves:
                    break
        self._epoch, self._samples = self._epoch + 1, 0

    def __iter__(self) -> Iterator[list[int]]:
        for places in self._batches():
            yield self._ids(self._epoch, self._share(places) or places[:1])

    def __len__(self) -> int:
        """Batches that are left of the current epoch."""
        left, place = 0, self._samples
        ranges = sorted((first, first + count) for epoch, first, count in self._skipped if epoch == self._epoch)
        for first, end in [*ranges, (self._end, self._end)]:
            left += max(0, min(first, self._end) - place)
            place = max(place, end)
        return -(-left // self._global_batch_size)

    def skip(self, epoch: int, first_sample: int, count: int) -> None:
        """Never hand out `count` places of an epoch's order, from place `first_sample` on.

        Raises:
            ConfigError: They are not places of the order.
        """
        if epoch < 0 or first_sample < 0 or count < 1 or first_sample + count > self._length:
            raise ConfigError("skip", (epoch, first_sample, count), f"is not within an epoch of {self._length} samples")
        self._skipped.append((epoch, first_sample, count))
        self._moves += 1

    def skip_current(self) -> None:
        """Never hand out again what was handed out last."""
        if self._current:
            first = self._current[0]
            self.skip(self._current_epoch, first, self._current[-1] + 1 - first)

    def state_dict(self) -> dict[str, Any]:
        """The position, in JSON types, the same on every rank."""
        return {
            **self._identity(),
            "epoch": self._epoch,
            "samples": self._samples,
            "skipped": [list(places) for places in self._skipped],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position, whatever world size it was saved under.

        Raises:
            ConfigError: It was saved with another dataset length, seed or batch size, or is no position.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise ConfigError(
                    name,
                    here,
                    f"the saved position is of {state.get(name)!r}: going on would repeat or lose samples",
                    cure=f"Set {name} to {state.get(name)!r}, or start the data from the beginning.",
                )
        try:
            epoch, samples = int(state["epoch"]), int(state["samples"])
            skipped = [(int(epoch), int(first), int(count)) for epoch, first, count in state["skipped"]]
        except (KeyError, TypeError, ValueError) as problem:
            raise ConfigError("state", dict(state), f"is no position of a sampler ({problem!r})") from None
        if epoch < 0 or not 0 <= samples <= self._end:
            raise ConfigError("samples", samples, f"is no position in epoch {epoch}, which has {self._end} samples")
        self._epoch, self._samples = epoch, samples
        self._skipped = skipped
        self._moves += 1

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "global_batch_size": self._global_batch_size,
            "dataset_length": self._length,
            "drop_last": self._drop_last,
        }

    def _batches(self) -> Iterator[list[int]]:
        """The places of each global batch that is left; looked up as they are asked for, ahead of the position."""
        skipped = [range(first, first + count) for epoch, first, count in self._skipped if epoch == self._epoch]
        batch: list[int] = []
        for place in range(self._samples, self._end):
            if not any(place in places for places in skipped):
                batch.append(place)
            if len(batch) == self._global_batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _share(self, places: list[int]) -> list[int]:
        share = share_of(len(places), self._rank, self._world_size)
        return places[share.start : share.stop]

    def _ids(self, epoch: int, places: list[int]) -> list[int]:
        order = Permutation(self._length, seed=self._seed, epoch=epoch)
        return order(np.array(places, dtype=np.int64))
