"""Boxes of tensors into one shard: what an import and DCP's ranks write, without the training's own plan."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import torch

from production_ml.fault_tolerance.checkpoint_format.base import SaveUnderWay
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry
from production_ml.fault_tolerance.checkpoint_format.shard_layout import PAGE_BYTES
from production_ml.fault_tolerance.checkpoint_format.tensor_types import dtype_name
from production_ml.fault_tolerance.saving.commit import hash_shard
from production_ml.fault_tolerance.saving.order import Holding, ShardContents
from production_ml.fault_tolerance.saving.parts import Part, describe_part
from production_ml.storage.hashing import hash_bytes


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

    def write(self, save: SaveUnderWay, number: int) -> Part:
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
        image[: len(layout.header)] = layout.header
        view = memoryview(image)
        name = save.write_shard(number, view, layout.size_bytes)
        file = FileEntry(size_bytes=layout.size_bytes, header_hash=hash_bytes(layout.header))
        return describe_part(name, self.holdings, file, hash_shard(view, layout))
