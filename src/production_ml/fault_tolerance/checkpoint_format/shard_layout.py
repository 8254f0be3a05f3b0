"""The layout of a shard: a safetensors header, and where each tensor's bytes lie. No torch here."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES, size_bytes, stored_form

HEADER_LENGTH: Final = struct.Struct("<Q")
PAGE_BYTES: Final = 4096
"""The data begins at a multiple of this: direct I/O wants it, and so does every element type."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one tensor lie in a shard."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.begin + self.size_bytes


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """A shard's first bytes and the places of the rest."""

    header: bytes
    """With its length before it, as it stands in the file."""
    extents: Mapping[str, Extent]
    """By key, in the order of the file."""
    size_bytes: int


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> ShardLayout:
    """Place tensors, given as (key, dtype, shape).

    Those with large elements come first, so that all are aligned to their elements without gaps.
    """
    ordered = sorted(tensors, key=lambda tensor: -ELEMENT_BYTES[tensor[1]])
    header = _header(ordered)
    extents, position = {}, len(header)
    for key, dtype, shape in ordered:
        size = size_bytes(dtype, shape)
        extents[key] = Extent(dtype, shape, position, size)
        position += size
    return ShardLayout(header, extents, position)


def _header(ordered: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    described: dict[str, Any] = {}
    position = 0
    for key, dtype, shape in ordered:
        end = position + size_bytes(dtype, shape)
        stored_dtype, stored_shape = stored_form(dtype, shape)
        described[key] = {"dtype": stored_dtype, "shape": stored_shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(described).encode()
    encoded += b" " * (-(len(encoded) + HEADER_LENGTH.size) % PAGE_BYTES)
    return HEADER_LENGTH.pack(len(encoded)) + encoded
