"""State as tensors by name plus JSON: any nesting of dicts, lists and numbers goes in and comes out the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from production_ml.core.errors import CheckpointWriteError

_MARKS = ("$tensor", "$array", "$tuple", "$float", "$items")


def encode_tree(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON form of `value`; tensors and arrays in it are put into `tensors` under names that begin with `name`.

    Raises:
        CheckpointWriteError: Something in it is neither a tensor nor a plain value; nothing is pickled.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"$array": name}
    if isinstance(value, np.generic):
        return encode_tree(value.item(), name, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
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


def _encode_mapping(value: Mapping[Any, Any], name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if all(isinstance(key, str) and key not in _MARKS for key in value):
        return {key: encode_tree(item, f"{name}/{key}", tensors) for key, item in value.items()}
    pairs = [
        [encode_tree(key, f"{name}/key", tensors), encode_tree(item, f"{name}/{key}", tensors)]
        for key, item in value.items()
    ]
    return {"$items": pairs}


def decode_tree(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `encode_tree` was given, with `tensors` in their places."""
    if isinstance(encoded, list):
        return [decode_tree(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        mark, content = next(iter(encoded.items()))
        if mark == "$tensor":
            return tensors[content]
        if mark == "$array":
            return tensors[content].numpy()
        if mark == "$tuple":
            return tuple(decode_tree(item, tensors) for item in content)
        if mark == "$float":
            return float(content)
        if mark == "$items":
            return {decode_tree(key, tensors): decode_tree(item, tensors) for key, item in content}
    return {key: decode_tree(item, tensors) for key, item in encoded.items()}
