"""Element types by name and size, and how those are stored that safetensors has no name for. No torch here."""

from __future__ import annotations

import math
from typing import Final

_SAFETENSORS_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
_STORED_AS: Final = {
    "C128": ("F64", (2,)),
    "F8_E4M3FNUZ": ("U8", ()),
    "F8_E5M2FNUZ": ("U8", ()),
    "F8_E8M0": ("U8", ()),
}
"""Other types to a safetensors type of the same bytes, and the dimensions that it adds at the end."""

ELEMENT_BYTES: Final = {**_SAFETENSORS_BYTES, "C128": 16, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1}
"""The size of one element by the manifest's name of its type."""


def size_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The size of a tensor."""
    return math.prod(shape) * ELEMENT_BYTES[dtype]


def stored_form(dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The type and shape under which a tensor stands in a safetensors file; the bytes are the same."""
    stored, added = _STORED_AS.get(dtype, (dtype, ()))
    return stored, shape + added
