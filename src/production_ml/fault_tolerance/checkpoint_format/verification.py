"""Verification: every byte of a checkpoint against its manifest, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.misnamed import Misnamed
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a checkpoint.

    Attributes:
        step: The step of the checkpoint.
        file: The path of the damaged file.
        tensor: The damaged tensor, or None where the damage is in the file as a whole.
        problem: What was found, as the end of a sentence that begins with the file and the tensor.
    """

    step: int
    file: str
    tensor: str | None
    problem: str

    @classmethod
    def of(cls, error: DamagedCheckpointError) -> Damage:
        """The facts of an error."""
        return cls(error.step, error.name, error.tensor, error.problem)

    @classmethod
    def of_name(cls, misnamed: Misnamed) -> Damage:
        """A checkpoint that is not found by its name."""
        return cls(misnamed.step, str(misnamed.path), None, misnamed.problem)

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {"step": self.step, "file": self.file, "tensor": self.tensor, "problem": self.problem}

    def __str__(self) -> str:
        named = f" tensor {self.tensor!r}" if self.tensor is not None else ""
        return f"{self.file}:{named} {self.problem}"


def verify_checkpoint(directory: CheckpointPlace, step: int) -> Iterator[Damage]:
    """Everything that is wrong with the checkpoint of `step`; nothing where it is sound.

    Raises:
        CheckpointError: It cannot be judged: the system refuses to read it, or a newer release wrote it.
    """
    try:
        manifest = directory.manifest(step)
    except DamagedCheckpointError as error:
        yield Damage.of(error)
        return
    for file, chunks in chunks_by_file(manifest).items():
        yield from _verify_file(directory, manifest, file, chunks)


def chunks_by_file(manifest: Manifest) -> dict[str, list[tuple[str, str, ChunkEntry]]]:
    """For each shard, by name, the (tensor, element type, chunk) in it; a tied tensor stands under all its names."""
    chunks: dict[str, list[tuple[str, str, ChunkEntry]]] = {file: [] for file in sorted(manifest.files)}
    for name, entry in manifest.tensors.items():
        for chunk in entry.chunks:
            chunks[chunk.file].append((name, entry.dtype, chunk))
    return chunks


def _verify_file(
    directory: CheckpointPlace, manifest: Manifest, file: str, chunks: list[tuple[str, str, ChunkEntry]]
) -> Iterator[Damage]:
    try:
        source = directory.source(manifest.step, file)
        with ShardReader(source, manifest.files[file], step=manifest.step) as reader:
            for name, dtype, chunk in chunks:
                try:
                    reader.verify(name, dtype, chunk)
                except DamagedCheckpointError as error:
                    yield Damage.of(error)
    except DamagedCheckpointError as error:
        yield Damage.of(error)
