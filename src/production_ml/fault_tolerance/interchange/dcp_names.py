"""The names that DCP has for what a checkpoint holds, whoever wrote it, and the values of one that DCP wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.state_tree import decode_tree, encode_tree, tensor_names
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_tensor
from production_ml.fault_tolerance.interchange.whole_state import DCP, leaves_of, stand_ins, state_by_name

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class NamedState:
    """A checkpoint by DCP's names, such as `model.0.weight` and `optimizer.state.0.weight.exp_avg`."""

    manifest: Manifest
    tensors: Mapping[str, str]
    """The checkpoint's own name for each."""
    objects: Mapping[str, Any]
    """What is no tensor: decoded, with stand-ins for tensors; or in JSON where DCP wrote it."""
    paths: Mapping[str, Path]
    """The keys, from the outermost, that DCP's name is made of."""

    def object(self, name: str, source: CheckpointSource) -> Any:
        """A value that is no tensor, with the tensors in it.

        Raises:
            DamagedCheckpointError: One of them is not what was written.
        """
        value = self.objects[name]
        return decode_tree(value, {tensor: read_tensor(source, tensor) for tensor in tensor_names(value)})


def named_state(manifest: Manifest) -> NamedState:
    """What a checkpoint holds by DCP's names."""
    if DCP in manifest.values:
        described = manifest.values[DCP]
        paths = {name: tuple(path) for name, path in described["paths"].items()}
        objects = described["objects"]
        inner = {tensor for value in objects.values() for tensor in tensor_names(value)}
        tensors = {name: name for name in manifest.tensors if name not in inner}
        return NamedState(manifest, tensors, objects, paths)
    without_memory = stand_ins(manifest)
    own_names = {id(tensor): name for name, tensor in without_memory.items()}
    leaves = dict(leaves_of(state_by_name(manifest, without_memory)))
    paths = {".".join(map(str, path)): path for path in leaves}
    tensors, objects = {}, {}
    for path, leaf in leaves.items():
        name = ".".join(map(str, path))
        if isinstance(leaf, torch.Tensor):
            tensors[name] = own_names[id(leaf)]
        else:
            objects[name] = _encoded(leaf, own_names)
    return NamedState(manifest, tensors, objects, paths)


def values_of(metadata: Metadata, objects: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a manifest for what DCP saved.

    The model is what stood under "model", or all of it where the state dict was flat and of tensors alone; then
    `CheckpointManager` can load it too.

    Args:
        metadata: DCP's own, of which the names and paths are kept.
        objects: What is no tensor, in JSON, by DCP's names.
    """
    names = list(metadata.state_dict_metadata)
    paths = {name: list((metadata.planner_data or {}).get(name, [name])) for name in names}
    model = {path[1]: name for name, path in paths.items() if len(path) == 2 and path[0] == "model"}
    if not model and not objects and all(len(path) == 1 for path in paths.values()):
        model = {path[0]: name for name, path in paths.items()}
    encoded = {key: objects.get(name, {"$tensor": name}) for key, name in model.items()}
    return {"model": encoded, "optimizer": None, "extra": {}, DCP: {"paths": paths, "objects": dict(objects)}}


def _encoded(leaf: Any, own_names: Mapping[int, str]) -> Any:
    """A decoded value with stand-ins back in JSON: the stand-ins tell which tensors are meant."""
    met: dict[str, torch.Tensor] = {}
    encoded = encode_tree(leaf, "", met)
    return _renamed(encoded, {name: own_names[id(tensor)] for name, tensor in met.items()}) if met else encoded


def _renamed(encoded: Any, names: Mapping[str, str]) -> Any:
    if isinstance(encoded, list):
        return [_renamed(item, names) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if set(encoded) == {"$tensor"}:
        return {"$tensor": names[encoded["$tensor"]]}
    return {key: _renamed(item, names) for key, item in encoded.items()}
