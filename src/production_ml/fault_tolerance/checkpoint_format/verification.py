"""Verification: every byte of a checkpoint against its manifest, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a checkpoint."""

    step: int
    file: str
    tensor: str | None
    problem: str

    @classmethod
    def of(cls, error: DamagedCheckpointError) -> Damage:
        """The facts of an error."""
        return cls(error.step, str(error.path), error.tensor, error.problem)


def verify_checkpoint(directory: CheckpointDirectory, step: int) -> Iterator[Damage]:
    """Everything that is wrong with the checkpoint of `step`; nothing where it is sound."""
    try:
        manifest = directory.manifest(step)
    except DamagedCheckpointError as error:
        yield Damage.of(error)
        return
    for file in sorted({chunk.file for entry in manifest.tensors.values() for chunk in entry.chunks}):
        yield from _verify_file(directory, manifest, file)


def _verify_file(directory: CheckpointDirectory, manifest: Manifest, file: str) -> Iterator[Damage]:
    try:
        reader = ShardReader(directory.committed(manifest.step) / file, step=manifest.step)
    except DamagedCheckpointError as error:
        yield Damage.of(error)
        return
    for name, entry in manifest.tensors.items():
        for chunk in entry.chunks:
            if chunk.file == file:
                try:
                    reader.read(name, entry.dtype, chunk)
                except DamagedCheckpointError as error:
                    yield Damage.of(error)
    reader.close()
