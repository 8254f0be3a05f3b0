"""Staging: a rank's tensors copied into the image of its shard, what may change at once before what may not."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES, as_bytes
from production_ml.fault_tolerance.saving.device_copies import DeviceCopies
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import UNCHANGED, ShardContents
from production_ml.fault_tolerance.saving.pinning import PinnedImage
from production_ml.fault_tolerance.saving.samples import take_sample
from production_ml.fault_tolerance.saving.shard_plan import ShardPlan

_WORTH_DEFERRING_BYTES: Final = 64 << 10
"""Smaller tensors are copied at once: to do it later would take the interpreter from training as often."""
_LEAST_LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that is made while training goes on."""

    name: str
    source: torch.Tensor
    target: torch.Tensor
    owner: torch.Tensor
    versions: tuple[int, int]
    """Of source and owner when the save began; torch counts changes in place, but those through `.data`."""
    sample: bytes | None

    @classmethod
    def of(cls, name: str, source: torch.Tensor, target: torch.Tensor, owner: torch.Tensor) -> _Copy:
        versions = (source._version, owner._version)
        return cls(name, source.detach(), target, owner, versions, take_sample(source))

    @property
    def is_torn(self) -> bool:
        is_changed = (self.source._version, self.owner._version) != self.versions
        # Only changes that came before the copy are in it; later ones are no matter.
        return is_changed or (self.sample is not None and take_sample(self.target) != self.sample)


class Transfer:
    """What is still under way when `save()` returns.

    Args:
        copies: The copies that may be made behind training. They are let go of when they are made, as whoever holds
            this may hold it until the next save, and training may have let go of the tensors.
        on_devices: Where devices make them.
    """

    def __init__(self, copies: list[_Copy], on_devices: DeviceCopies) -> None:
        self._copies = copies
        self._on_devices = on_devices
        self._copied = threading.Event()
        self._looked_at = threading.Event()
        self._lock = threading.Lock()
        self._torn: list[str] | None = None

    def run(self) -> None:
        """Make the copies.

        Raises:
            TornSaveError: Something was changed before it had been copied.
        """
        try:
            self._make_copies()
            if torn := self._look():
                raise TornSaveError(torn)
        finally:
            self._copies = []

    def _make_copies(self) -> None:
        started_seconds = SYSTEM_CLOCK.monotonic_seconds()
        try:
            for copy in self._copies:
                if not copy.source.is_cuda:
                    _copy_behind(copy.source, copy.target)
            self._on_devices.await_end()
        finally:
            self._copied.set()
        if self._copies:
            # torch counts a change when it is made: one that is half made now is to be counted too. Training that
            # comes to its gate, or waits for this save, is amid none; else it is given longer than the copies took.
            taken_seconds = SYSTEM_CLOCK.monotonic_seconds() - started_seconds
            self._looked_at.wait(_LEAST_LOOK_SECONDS + 2 * taken_seconds)

    def let_change(self) -> None:
        """Return when training may change everything: on a device it may be told so, as it works in order."""
        self._on_devices.hold_back()
        if any(not copy.source.is_cuda for copy in self._copies):
            self._copied.wait()
        self._look()

    def _look(self) -> list[str]:
        """What was changed in place, at the first look: later changes are no matter."""
        with self._lock:
            if self._torn is None:
                self._torn = [copy.name for copy in self._copies if copy.is_torn]
        self._looked_at.set()
        return self._torn


class TornSaveError(CheckpointWriteError):
    """Training changed tensors in place while they were being copied, other than by `optimizer.step()`."""

    is_healed = True

    def __init__(self, names: list[str]) -> None:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        super().__init__(
            f"tensor {names[0]!r}{more} changed in place between save() and the next optimizer.step().",
            meaning=f"This checkpoint was dropped, as it would mix two moments. {UNCHANGED}",
            cure="From now on save() copies everything before it returns.",
        )


class Staging:
    """Copies into one image, which is laid out once for a model and then reused."""

    def __init__(self) -> None:
        self.image = ShardImage()
        self._pinned = PinnedImage()
        self._for_devices = False
        self._contents: ShardContents | None = None
        self._views: dict[str, torch.Tensor] = {}
        self._large: list[str] = []

    def reserve(self, contents: ShardContents, *, for_devices: bool) -> None:
        """Have the memory for such a shard, touched once, so that the copy is as fast as it can be.

        Raises:
            OSError: The memory for it is not there.
        """
        if contents is self._contents and for_devices == self._for_devices:
            return
        self._views, self._contents = {}, None
        self._pinned.release()
        self.image.resize(contents.layout.size_bytes)
        if for_devices:
            self._pinned.pin(self.image)
        whole = torch.frombuffer(self.image.data, dtype=torch.uint8) if len(self.image.data) else torch.empty(0)
        for key, extent in contents.layout.extents.items():
            flat = whole[extent.begin : extent.end]
            self._views[key] = flat.view(DTYPES[extent.dtype]).view(extent.shape)
        extents = contents.layout.extents.items()
        self._large = [key for key, extent in extents if extent.size_bytes >= _WORTH_DEFERRING_BYTES]
        self._contents, self._for_devices = contents, for_devices

    def begin(self, plan: ShardPlan, deferrable: Collection[int]) -> Transfer:
        """Copy what must be copied now, and say what is left. What was staged before must be in use no more.

        Args:
            plan: What to copy.
            deferrable: The `id`s of the tensors that may be copied after this has returned.

        Raises:
            OSError: The memory for it is not there.
        """
        self.reserve(plan.contents, for_devices=any(source.is_cuda for source in plan.data.values()))
        views = self._views
        later = [
            _Copy.of(key, plan.data[key], views[key], owner)
            for key in self._large
            if id(owner := plan.owners[key]) in deferrable and not owner.is_inference()
        ]
        waiting = {copy.name for copy in later}
        at_once = [(source, views[key]) for key, source in plan.data.items() if key not in waiting]
        on_devices = DeviceCopies()
        if self._pinned.is_pinned or any(source.is_cuda for source, _ in at_once):
            on_devices.make([pair for pair in at_once if pair[0].is_cuda])
            on_devices.hold_back()
            on_devices.make([(copy.source, copy.target) for copy in later if copy.source.is_cuda])
            at_once = [pair for pair in at_once if not pair[0].is_cuda]
        _copy_now(at_once)
        return Transfer(later, on_devices)

    def close(self) -> None:
        """Let go of the memory."""
        self._views, self._contents = {}, None
        self._pinned.release()
        self.image.close()


def _copy_now(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([target for _, target in pairs], [source for source, _ in pairs])


def _copy_behind(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy on one core without the interpreter; torch's own copy would take the cores that training computes on."""
    if source.is_contiguous() and source.device.type == "cpu" and not source.is_conj() and not source.is_neg():
        np.copyto(np.frombuffer(as_bytes(target), np.uint8), np.frombuffer(as_bytes(source), np.uint8))
    else:
        target.copy_(source)
