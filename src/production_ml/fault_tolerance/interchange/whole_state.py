"""A checkpoint as the nested state dict that a person would have saved: what exports to torch.save and DCP hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.core.structured_logging import json_safe
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.interchange.optimizer_forms import by_name, by_number

ORIGIN: Final = "production_ml"
"""The key of an export under which an import finds, as JSON, what the other format has no place for."""
RANK_VALUES: Final = "rank_values"
"""The key of an export under which is what differs by rank, a list."""
DCP: Final = "dcp"
"""The key in a manifest's values of a checkpoint that was written through DCP's API."""

OptimizerForm = Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], dict[str, Any]]


def state_by_number(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`model`, `optimizer` (as `optimizer.state_dict()` gives it), `step`, `metrics`, and each extra by its name.

    What differs by rank is a list, `rank_values`.

    Args:
        manifest: The checkpoint.
        tensors: Its tensors by name, or stand-ins for them. Arrays become tensors.

    Raises:
        CheckpointWriteError: An extra has the name of another part.
    """
    return _whole_state(manifest, tensors, by_number)


def state_by_name(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The same with the optimizer as DCP's `get_optimizer_state_dict` gives it."""
    return _whole_state(manifest, tensors, by_name)


def stand_ins(manifest: Manifest) -> dict[str, torch.Tensor]:
    """For each tensor one without memory, on the meta device: for planning what is read later."""
    return {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
        for name, entry in manifest.tensors.items()
    }


def _whole_state(manifest: Manifest, tensors: Mapping[str, torch.Tensor], form: OptimizerForm) -> dict[str, Any]:
    values = _arrays_as_tensors(manifest.values)
    if DCP in values:
        return _dcp_state(values[DCP], tensors)
    state: dict[str, Any] = {"model": {name: decode_tree(item, tensors) for name, item in values["model"].items()}}
    if values["optimizer"] is not None:
        state["optimizer"] = form(values["optimizer"], tensors)
    state |= {"step": manifest.step, "metrics": dict(manifest.metrics)}
    for name, extra in values["extra"].items():
        _check_extra_name(name)
        is_optimizer = extra["kind"] == "optimizer"
        state[name] = form(extra["value"], tensors) if is_optimizer else decode_tree(extra["value"], tensors)
    if manifest.rank_values:
        state[RANK_VALUES] = [decode_tree(_arrays_as_tensors(value), tensors) for value in manifest.rank_values]
    return {**state, ORIGIN: json.dumps(_origin(values, manifest))}


def _check_extra_name(name: str) -> None:
    if name in (RANK_VALUES, ORIGIN):
        raise CheckpointWriteError(
            f"The extra {name!r} has a name that this format needs for something else.",
            meaning="One of the two would be lost, so nothing was written.",
            cure="Export it to safetensors with --with-optimizer, where extras keep their names.",
        )


def _origin(values: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    kinds = {name: extra["kind"] for name, extra in values["extra"].items()}
    optimizers = {"optimizer": values["optimizer"]} if values["optimizer"] is not None else {}
    optimizers |= {name: values["extra"][name]["value"] for name, kind in kinds.items() if kind == "optimizer"}
    return {
        "step": manifest.step,
        "metrics": json_safe(dict(manifest.metrics)),
        "extra_kinds": kinds,
        "optimizer_classes": {name: encoded["class"] for name, encoded in optimizers.items()},
    }


def _dcp_state(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    leaves = {name: decode_tree(item, tensors) for name, item in described["objects"].items()}
    leaves |= {name: tensors[name] for name in described["paths"] if name not in leaves}
    return nested(leaves, described["paths"])


def nested(leaves: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict from its leaves and the path of each; numbers in a path are places in a list."""
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        container: Any = root
        path = list(paths.get(name, [name]))
        for key, following in itertools.pairwise(path):
            container = _get_or_put(container, key, [] if isinstance(following, int) else {})
        _put(container, path[-1], leaf)
    return root


def leaves_of(state: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The leaves that DCP would make of a state dict, with their paths. It opens mappings, and lists with tensors."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from leaves_of(value, (*path, str(key)))
    elif isinstance(state, list) and any(_holds_leaves(item) for item in state):
        for index, value in enumerate(state):
            yield from leaves_of(value, (*path, index))
    else:
        yield path, state


def _holds_leaves(item: Any) -> bool:
    if isinstance(item, list):
        return any(_holds_leaves(inner) for inner in item)
    return isinstance(item, Mapping | torch.Tensor)


def _get_or_put(container: Any, key: Any, default: Any) -> Any:
    if isinstance(container, list):
        container.extend([None] * (key + 1 - len(container)))
        if container[key] is None:
            container[key] = default
        return container[key]
    return container.setdefault(key, default)


def _put(container: Any, key: Any, leaf: Any) -> None:
    if isinstance(container, list):
        container.extend([None] * (key + 1 - len(container)))
    container[key] = leaf


def _arrays_as_tensors(encoded: Any) -> Any:
    if isinstance(encoded, list):
        return [_arrays_as_tensors(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if set(encoded) == {"$array"}:
        return {"$tensor": encoded["$array"]}
    return {key: _arrays_as_tensors(item) for key, item in encoded.items()}
