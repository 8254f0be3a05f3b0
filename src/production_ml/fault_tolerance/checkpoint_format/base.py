"""What a place for checkpoints must do, be it a directory or an object store."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from production_ml.fault_tolerance.checkpoint_format.byte_source import ByteSource
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, ManifestSummary
from production_ml.fault_tolerance.checkpoint_format.misnamed import Misnamed


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a retention policy looks at."""

    step: int
    metrics: Mapping[str, float]
    created_at: float
    size_bytes: int = 0

    @classmethod
    def of(cls, summary: ManifestSummary) -> CheckpointInfo:
        """What the manifest says."""
        return cls(summary.step, summary.metrics, summary.created_at, summary.size_bytes)


class Claim(Protocol):
    """Rank 0's word that a save is under way; it ends with its holder, however that ends."""

    descriptor: int | None
    """What another process needs to hold it too; None where it is held by no descriptor."""

    def hand_over(self) -> None:
        """Another process has the descriptor now."""
        ...

    def release(self) -> None: ...


class SaveUnderWay(Protocol):
    """Where the ranks of one save put what they have; the only way in which they talk while training goes on."""

    def write_shard(self, rank: int, image: memoryview, size_bytes: int) -> str:
        """Store a rank's shard durably, and give its name for the manifest."""
        ...

    def write_part(self, rank: int, document: bytes) -> None:
        """Tell rank 0 that a rank's shard is stored, or why it never will be; durable, at once or not at all."""
        ...

    def read_parts(self, ranks: Iterable[int]) -> dict[int, bytes]:
        """What those of `ranks` have told that have told something."""
        ...

    def withdraw(self, rank: int) -> None:
        """Take back what a rank has stored; on a full disk it makes the room for a few last words."""
        ...

    def is_claimed(self) -> bool:
        """Whether rank 0 goes on with it; not any more once it is committed or given up."""
        ...

    def is_held_here(self) -> bool:
        """Whether a process of this host is surely at work on it."""
        ...


class CheckpointPlace(Protocol):
    """Committed checkpoints by step, and the steps that change them.

    The manifest is the commit: whoever lists, reads or removes sees a checkpoint as a whole or not at all.
    """

    @property
    def url(self) -> str:
        """For messages."""
        ...

    def committed(self, step: int) -> object:
        """The name of the checkpoint of `step`, for messages."""
        ...

    def steps(self) -> list[int]:
        """The committed steps, oldest first. Says nothing yet about their health."""
        ...

    def manifest(self, step: int) -> Manifest:
        """The verified manifest of `step`."""
        ...

    def identity(self, step: int) -> Hashable | None:
        """What tells the checkpoint of `step` from another that takes its name later; None where there is none."""
        ...

    def infos(self) -> Sequence[CheckpointInfo]:
        """The checkpoints whose manifests are sound, oldest first."""
        ...

    def is_whole(self, step: int) -> bool:
        """Whether the checkpoint of `step` has a sound manifest, and each file that it names at its size."""
        ...

    def reading(self, step: int) -> AbstractContextManager[Any]:
        """Within it the checkpoint of `step` is not pruned, where the place can promise that."""
        ...

    def is_being_read(self, step: int) -> bool:
        """Whether somebody reads it now, where the place can tell."""
        ...

    def source(self, step: int, file: str) -> ByteSource:
        """The bytes of a shard that the manifest of `step` names."""
        ...

    def incomplete(self, step: int, save_id: str) -> SaveUnderWay:
        """Where the ranks write the checkpoint of `step` in the save of that id."""
        ...

    def begin(self, step: int, save_id: str) -> Claim:
        """Make that place, and claim it for this process."""
        ...

    def commit(self, written: Any, manifest: Manifest) -> None:
        """Make a checkpoint of what the ranks have stored."""
        ...

    def is_committed(self, written: Any) -> bool:
        """Whether a save has become the checkpoint of its step."""
        ...

    def abandon(self, written: Any) -> None:
        """Delete what a failed save has stored."""
        ...

    def saves_under_way(self) -> Sequence[SaveUnderWay]:
        """The saves that processes of this host are surely at work on."""
        ...

    def quarantine(self, step: int, reason: Mapping[str, Any]) -> object:
        """Take a damaged checkpoint out of the listing and keep it; gives where."""
        ...

    def remove(self, step: int) -> bool:
        """Delete a checkpoint so that a crash on the way leaves nothing that looks like one; False if it is read."""
        ...

    def put_back(self) -> None:
        """Give every checkpoint its name back that lost it to a crash between two renames, or to a bad disk."""
        ...

    def misnamed(self) -> Sequence[Misnamed]:
        """The checkpoints that a listing by name does not find; they are damaged, as long as they are not put back."""
        ...

    def remove_leftovers(self) -> None:
        """Clear away what interrupted saves and removals left behind; saves that may be alive are not touched."""
        ...
