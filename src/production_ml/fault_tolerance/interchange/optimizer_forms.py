"""An optimizer's saved state in the forms that others know: torch's own by number, and DCP's by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree


def by_number(encoded: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What `optimizer.state_dict()` gives, with the parameters' names in `param_names`.

    Args:
        encoded: An optimizer as a manifest's values hold it.
        tensors: The checkpoint's tensors by name.
    """
    names = [name for group in encoded["groups"] for name in group["params"]]
    state = {
        number: _decoded(encoded["state"][name], tensors)
        for number, name in enumerate(names)
        if name in encoded["state"]
    }
    groups, first = [], 0
    for group in encoded["groups"]:
        numbers = list(range(first, first + len(group["params"])))
        groups.append({**_decoded(group["options"], tensors), "params": numbers, "param_names": list(group["params"])})
        first += len(numbers)
    return {"state": state, "param_groups": groups}


def by_name(encoded: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` gives."""
    state = {name: _decoded(items, tensors) for name, items in encoded["state"].items()}
    groups = [{**_decoded(group["options"], tensors), "params": list(group["params"])} for group in encoded["groups"]]
    return {"state": state, "param_groups": groups}


def is_optimizer_state(value: Any) -> bool:
    """Whether it looks like an optimizer's state, in either form."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("state"), Mapping)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(group, Mapping) and "params" in group for group in value["param_groups"])
    )


def encode_optimizer(
    state: Mapping[str, Any],
    optimizer_class: str,
    prefix: str,
    tensors: dict[str, torch.Tensor],
    *,
    strip_prefix: str = "",
) -> dict[str, Any] | None:
    """The form of a manifest, from either of the two others; None where the parameters' names are not known.

    Args:
        state: The optimizer's state dict.
        optimizer_class: The name of its class, which neither form holds.
        prefix: The beginning of its tensors' names.
        tensors: Where its tensors are put.
        strip_prefix: Taken off the beginning of its parameters' names, as off the model's.
    """
    groups, named = [], dict[str, str]()
    for number, group in enumerate(state["param_groups"]):
        names = group.get("param_names", group["params"])
        if not all(isinstance(name, str) for name in names):
            return None
        names = [name.removeprefix(strip_prefix) for name in names]
        # DCP's flattening makes strings of numbers.
        named |= {str(key): name for key, name in zip(group["params"], names, strict=True)}
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({"params": names, "options": encode_tree(options, f"{prefix}.group{number}", tensors)})
    encoded = {}
    for key, items in state["state"].items():
        name = named.get(str(key))
        if name is None:
            return None
        encoded[name] = {
            field: encode_tree(value, f"{prefix}.{field}.{name}", tensors) for field, value in items.items()
        }
    return {"class": optimizer_class, "groups": groups, "state": encoded}


def _decoded(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    decoded: dict[str, Any] = decode_tree(encoded, tensors)
    return decoded
