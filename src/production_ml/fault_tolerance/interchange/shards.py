"""Boxes of tensors into one shard: what an import and DCP's ranks write, without the training's own plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from production_ml.fault_tolerance.checkpoint_format.boxes import Box, whole
from production_ml.fault_tolerance.checkpoint_format.shard_file import dtype_name, write_shard
from production_ml.fault_tolerance.saving.parts import Part, describe_part, shard_name
from production_ml.fault_tolerance.saving.shard_plan import Holding


@dataclass(slots=True)
class ShardContent:
    """What goes into one shard: boxes of tensors, in CPU memory until they are written."""

    holdings: list[Holding] = field(default_factory=list)
    data: dict[str, torch.Tensor] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, name: str, data: torch.Tensor, *, offsets: tuple[int, ...] | None, shape: tuple[int, ...]) -> None:
        """Take a box.

        Args:
            name: The tensor's name.
            data: The elements of the box, which must not change until they are written; on any device, in any stride.
            offsets: Where the box begins in the whole tensor; None for a whole tensor.
            shape: The shape of the whole tensor.

        Raises:
            CheckpointWriteError: A checkpoint cannot hold it.
        """
        dtype = dtype_name(name, data)
        local = data.detach().to("cpu").contiguous()
        box = whole(shape) if offsets is None else Box(offsets, tuple(local.shape))
        key = name if box == whole(shape) else f"{name}@{','.join(map(str, box.offsets))}"
        self.holdings.append(Holding(name, key, dtype, shape, box))
        self.data[key] = local
        self.size_bytes += local.nbytes

    def write(self, directory: Path, number: int) -> list[Part]:
        """Write all of it durably as the shard of that number; gives a part for each box.

        Raises:
            OSError: The file system does not take it.
        """
        file, hashes = write_shard(directory / shard_name(number), self.data)
        return [describe_part(number, [held], file, hashes) for held in self.holdings]
