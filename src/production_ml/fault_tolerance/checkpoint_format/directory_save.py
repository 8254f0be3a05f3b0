"""A save under way in a directory: files that appear whole or not at all carry the news between ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from production_ml.fault_tolerance.checkpoint_format.save_lock import is_surely_held
from production_ml.fault_tolerance.checkpoint_format.shard_writing import write_shard_file
from production_ml.storage.durable import replace_durably


def shard_name(rank: int) -> str:
    """The file of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def part_name(rank: int) -> str:
    """The file that says a rank has written its tensors."""
    return f"rank-{rank:05d}.part.json"


@dataclass(frozen=True, slots=True)
class DirectorySave:
    """The directory that the ranks of one save write to, and that becomes the checkpoint by its name alone."""

    path: Path

    def write_shard(self, rank: int, image: memoryview, size_bytes: int) -> str:
        name = shard_name(rank)
        write_shard_file(self.path / name, image, size_bytes)
        return name

    def write_part(self, rank: int, document: bytes) -> None:
        replace_durably(self.path / part_name(rank), document)

    def read_parts(self, ranks: Iterable[int]) -> dict[int, bytes]:
        listed = fresh_listing(self.path)
        return {rank: (self.path / part_name(rank)).read_bytes() for rank in ranks if part_name(rank) in listed}

    def withdraw(self, rank: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / shard_name(rank)).unlink()

    def is_claimed(self) -> bool:
        return self.path.name in fresh_listing(self.path.parent)

    def is_held_here(self) -> bool:
        return is_surely_held(self.path)

    def clear_parts(self, world_size: int) -> None:
        """Remove what the ranks have told: the manifest says it all."""
        for rank in range(1, world_size):
            (self.path / part_name(rank)).unlink(missing_ok=True)


def fresh_listing(directory: Path) -> set[str]:
    """The names in `directory` now.

    Over NFS a file that is asked for by name before it is there is taken to be missing for 30 to 60 seconds more. To
    open a directory asks the server.
    """
    return {entry.name for entry in directory.iterdir()}
