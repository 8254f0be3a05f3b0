"""State as tensors by name plus JSON: any nesting of dicts, lists and numbers goes in and comes out the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from production_ml.core.errors import CheckpointWriteError

_MARKS = ("$tensor", "$array", "$tuple", "$float", "$items")


def encode_tree(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON form of `value`; tensors and arrays in it are put into `tensors` under names that begin with `name`.

    Numpy scalars come back as Python's numbers, and other kinds of mappings and tuples as plain ones. The tensors are
    those of `value` itself, not copies.

    Raises:
        CheckpointWriteError: Something in it is neither a tensor nor a plain value; nothing is pickled.
    """
    if isinstance(value, torch.Tensor):
        return {"$tensor": _put(value, name, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _put(_array_tensor(value, name), name, tensors)}
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        value = value.item()
    if isinstance(value, float):
        # float() also turns numpy's float64, which is a float, into the number that JSON knows.
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return _encode_mapping(value, name, tensors)
    if isinstance(value, list | tuple):
        items = [encode_tree(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise CheckpointWriteError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold.",
        cure="Give tensors, arrays, numbers, strings and nestings of them, or an object with state_dict().",
    )


def _put(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> str:
    """Keep `tensor` under a name that is not taken: {1: a, "1": b} or {"x/y": a, "x": {"y": b}} lead to one twice."""
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return name


def _array_tensor(array: np.ndarray[Any, Any], name: str) -> torch.Tensor:
    # from_numpy warns of an array that may not be written, and refuses other byte orders and negative strides.
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(native)
    except TypeError:
        raise CheckpointWriteError(
            f"{name} is an array of {array.dtype}, which a checkpoint cannot hold.",
            cure="Convert it to numbers that torch knows, or give it as a list.",
        ) from None


def _encode_mapping(value: Mapping[Any, Any], name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if all(type(key) is str and key not in _MARKS for key in value):
        return {key: encode_tree(item, f"{name}/{key}", tensors) for key, item in value.items()}
    pairs = []
    for key, item in value.items():
        if isinstance(key, torch.Tensor):
            raise CheckpointWriteError(
                f"{name} has tensors as keys, which a checkpoint cannot hold.",
                cure="Use names or numbers as keys.",
            )
        pairs.append([encode_tree(key, f"{name}/key", tensors), encode_tree(item, f"{name}/{key}", tensors)])
    return {"$items": pairs}


def tensor_names(encoded: Any) -> Iterator[str]:
    """The names of all tensors and arrays in an encoded tree."""
    if isinstance(encoded, list):
        for item in encoded:
            yield from tensor_names(item)
    elif isinstance(encoded, dict):
        mark = next(iter(encoded), None)
        if len(encoded) == 1 and mark in ("$tensor", "$array"):
            yield encoded[mark]
        else:
            for item in encoded.values():
                yield from tensor_names(item)


def decode_tree(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `encode_tree` was given, with `tensors` in their places."""
    if isinstance(encoded, list):
        return [decode_tree(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    mark = next(iter(encoded), None)
    if len(encoded) == 1 and mark in _MARKS:
        return _decode_mark(mark, encoded[mark], tensors)
    return {key: decode_tree(item, tensors) for key, item in encoded.items()}


def _decode_mark(mark: str, content: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if mark == "$tensor":
        return tensors[content]
    if mark == "$array":
        return tensors[content].numpy()
    if mark == "$tuple":
        return tuple(decode_tree(item, tensors) for item in content)
    if mark == "$float":
        return float(content)
    return {decode_tree(key, tensors): decode_tree(item, tensors) for key, item in content}
