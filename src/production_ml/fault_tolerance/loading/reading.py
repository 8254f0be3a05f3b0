"""Reading: this rank's boxes out of verified chunks, and every other chunk verified by one rank or another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, intersection
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_file import DTYPES, ShardReader
from production_ml.fault_tolerance.checkpoint_format.verification import chunks_by_file


def read_boxes(
    path: Path, manifest: Manifest, boxes: Mapping[str, Box], *, rank: int, world_size: int
) -> dict[str, torch.Tensor]:
    """Read and verify.

    Each shard has a rank that verifies all of it, so that the ranks together see every byte, whatever they load.

    Args:
        path: The checkpoint.
        manifest: Its verified manifest.
        boxes: Which part of which tensor is wanted.
        rank: This rank.
        world_size: The number of ranks that load together.

    Returns:
        The boxes as new contiguous CPU tensors.

    Raises:
        DamagedCheckpointError: Something is not what was written.
        CheckpointError: The system refuses to read it.
    """
    found = {name: torch.empty(box.shape, dtype=DTYPES[manifest.tensors[name].dtype]) for name, box in boxes.items()}
    for number, (file, chunks) in enumerate(chunks_by_file(manifest).items()):
        is_mine = number % world_size == rank
        wanted = [(name, dtype, chunk) for name, dtype, chunk in chunks if _is_wanted(boxes.get(name), chunk)]
        if not wanted and not is_mine:
            continue
        with ShardReader(path / file, manifest.files[file], step=manifest.step) as reader:
            for name, dtype, chunk in wanted:
                _read_chunk(reader, name, dtype, chunk, boxes[name], found[name])
            seen = {chunk.key for _, _, chunk in wanted}
            for name, dtype, chunk in chunks if is_mine else []:
                if chunk.key not in seen:
                    reader.verify(name, dtype, chunk)
                    seen.add(chunk.key)
    return found


def _is_wanted(box: Box | None, chunk: ChunkEntry) -> bool:
    return box is not None and intersection(box, Box(chunk.offsets, chunk.shape)) is not None


def _read_chunk(reader: ShardReader, name: str, dtype: str, chunk: ChunkEntry, box: Box, target: torch.Tensor) -> None:
    held = Box(chunk.offsets, chunk.shape)
    if held == box:
        reader.read_into(name, dtype, chunk, target)
        return
    common = intersection(box, held)
    if common is not None:
        data = reader.read(name, dtype, chunk)
        target[common.slices_within(box)] = data[common.slices_within(held)]
