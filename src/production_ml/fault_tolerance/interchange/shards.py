"""Boxes of tensors into one shard: what an import and DCP's ranks write, without the training's own plan."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import torch

from production_ml.fault_tolerance.checkpoint_format.shard_layout import PAGE_BYTES
from production_ml.fault_tolerance.checkpoint_format.tensor_types import dtype_name
from production_ml.fault_tolerance.saving.order import Holding, ShardContents
from production_ml.fault_tolerance.saving.parts import Part, describe_part, shard_name
from production_ml.fault_tolerance.saving.shard_writer import write_shard


@dataclass(slots=True)
class ShardBoxes:
    """What goes into one shard."""

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
        begin = (0,) * len(shape) if offsets is None else offsets
        box_shape = tuple(data.shape)
        key = name if box_shape == shape else f"{name}@{','.join(map(str, begin))}"
        self.holdings.append(Holding(name, key, dtype, shape, begin, box_shape))
        self.data[key] = data.detach()
        self.size_bytes += data.nbytes

    def write(self, directory: Path, number: int) -> Part:
        """Write all of it durably as the shard of that number.

        Raises:
            OSError: The file system does not take it.
        """
        layout = ShardContents.of(tuple(self.holdings)).layout
        # Of whole pages, as direct I/O wants it.
        image = mmap.mmap(-1, -(-layout.size_bytes // PAGE_BYTES) * PAGE_BYTES)
        memory = torch.frombuffer(image, dtype=torch.uint8)
        for key, data in self.data.items():
            extent = layout.extents[key]
            if extent.size_bytes:
                memory[extent.begin : extent.end].view(data.dtype).view(data.shape).copy_(data)
        file, hashes = write_shard(directory / shard_name(number), memoryview(image), layout)
        return describe_part(number, self.holdings, file, hashes)
