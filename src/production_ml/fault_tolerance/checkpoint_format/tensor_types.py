"""torch's element types and the names they have in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from production_ml.core.errors import CheckpointWriteError

DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.complex128: "C128",
}
DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def dtype_name(name: str, tensor: torch.Tensor) -> str:
    """The manifest's name for a tensor's element type.

    Raises:
        CheckpointWriteError: There is none, or the tensor is sparse.
    """
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
        raise CheckpointWriteError(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) cannot be saved: a checkpoint holds dense tensors of "
            f"{', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in DTYPE_NAMES))}.",
            cure="Convert it first, or keep it out of the checkpoint.",
        )
    return DTYPE_NAMES[tensor.dtype]


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
