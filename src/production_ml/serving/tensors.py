"""One tensor of a message: the protocol's datatypes, and bytes or JSON numbers made into checked arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.problems import InvalidRequestError

Array: TypeAlias = npt.NDArray[Any]

# Little-endian, as the binary extension has it. BYTES and BF16 have no plain numpy type and are not served.
DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
# What numpy makes of JSON numbers, by the kind of the tensor they are for: 1 is fine for FP32, 1.5 is not for INT8.
_FITTING_KINDS: Final = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
_JSON_NAMES: Final = {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers with a fraction", "U": "strings"}


def check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Refuse a shape that is not the model's.

    Args:
        spec: What the model takes; -1 stands for any size.
        shape: What the request says.

    Raises:
        InvalidRequestError: Another number of dimensions or another size, or no rows at all.
    """
    fits = len(shape) == len(spec.shape) and all(
        wanted in (-1, got) for wanted, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise InvalidRequestError(f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(shape)}")
    if math.prod(shape) == 0:
        raise InvalidRequestError(f"input {spec.name!r}: shape {list(shape)} holds nothing to answer")


def from_json(name: str, data: Any, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Numbers of a JSON request, flat in row-major order or nested as `shape` says.

    Raises:
        InvalidRequestError: They are not numbers of that type, too large for it, too many or too few.
    """
    if not isinstance(data, list):
        raise InvalidRequestError(f"input {name!r}: data must be a list, got {_json_type(data)}")
    try:
        found = np.asarray(data)
    except ValueError:
        raise InvalidRequestError(f"input {name!r}: data is nested unevenly") from None
    if found.size != math.prod(shape):
        raise _wrong_count(name, shape, found.size)
    if found.ndim > 1 and found.shape != tuple(shape):
        raise InvalidRequestError(f"input {name!r}: data is nested as {list(found.shape)}, shape says {list(shape)}")
    if dtype.kind in "iu" and found.dtype.kind in "fO":
        return _large_integers(name, data, dtype).reshape(shape)
    if found.dtype.kind not in _FITTING_KINDS[dtype.kind]:
        raise InvalidRequestError(f"input {name!r}: {_datatype_of(dtype)} data must not hold {_odd_value(found)}")
    return _cast(name, found, dtype).reshape(shape)


def from_bytes(name: str, data: memoryview, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """The little-endian, row-major bytes of the binary extension; a view of `data` where its alignment allows.

    Raises:
        InvalidRequestError: There are more or fewer bytes than `shape` has room for, or a BOOL is neither 0 nor 1.
    """
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise InvalidRequestError(
            f"input {name!r}: shape {list(shape)} of {_datatype_of(dtype)} takes {math.prod(shape) * dtype.itemsize} "
            f"bytes, got {len(data)}"
        )
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidRequestError(f"input {name!r}: a BOOL is a byte of 0 or 1")
    found = np.frombuffer(data, dtype).reshape(shape)
    # The JSON before it may have any length; compiled code may expect numbers at addresses that suit them.
    return found if found.flags.aligned else found.copy()


def to_bytes(array: Array) -> bytes:
    """Row-major, little-endian."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def datatype_of(array: Array) -> str:
    """The protocol's name for the type of `array`."""
    return _datatype_of(array.dtype)


def _datatype_of(dtype: np.dtype[Any]) -> str:
    return _NAMES[dtype.newbyteorder("<")]


_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}


def _cast(name: str, found: Array, dtype: np.dtype[Any]) -> Array:
    """Integers must stay what they are; a number that a float type rounds is fine, one that becomes infinite is not."""
    if found.dtype == dtype:
        return found
    try:
        with np.errstate(over="raise"):
            cast = found.astype(dtype)
    except FloatingPointError:
        raise _out_of_range(name, dtype) from None
    if dtype.kind in "iu" and not np.array_equal(cast, found):
        raise _out_of_range(name, dtype)
    return cast


def _large_integers(name: str, data: list[Any], dtype: np.dtype[Any]) -> Array:
    """Numpy makes floats of integers beyond 63 bits where smaller ones stand beside them; this keeps them exact."""
    numbers = np.asarray(data, object).reshape(-1).tolist()
    if any(type(number) is not int for number in numbers):
        found = np.asarray(numbers)
        raise InvalidRequestError(f"input {name!r}: {_datatype_of(dtype)} data must not hold {_odd_value(found)}")
    try:
        return np.array(numbers, dtype)
    except OverflowError:
        raise _out_of_range(name, dtype) from None


def _out_of_range(name: str, dtype: np.dtype[Any]) -> InvalidRequestError:
    return InvalidRequestError(f"input {name!r}: data holds a number that is out of range for {_datatype_of(dtype)}")


def _wrong_count(name: str, shape: Sequence[int], got: int) -> InvalidRequestError:
    return InvalidRequestError(f"input {name!r}: shape {list(shape)} takes {math.prod(shape)} elements, got {got}")


def _odd_value(found: Array) -> str:
    if found.dtype.kind in _JSON_NAMES:
        hint = " (JSON has no NaN or infinity: send binary data for those)" if found.dtype.kind == "U" else ""
        return _JSON_NAMES[found.dtype.kind] + hint
    return "null or objects, or numbers beyond 64 bits"


def _json_type(value: Any) -> str:
    return {dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
