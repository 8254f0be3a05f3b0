"""One safetensors file of a whole checkpoint, from any world size, that any tool can open; and the way back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import CheckpointWriteError, InputFileError
from production_ml.core.structured_logging import json_safe
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import DTYPE_BYTES, Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.shard_file import as_bytes
from production_ml.fault_tolerance.checkpoint_format.state_tree import tensor_names
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, SortedState, sort_state
from production_ml.fault_tolerance.interchange.output import durable_file, write_all
from production_ml.fault_tolerance.interchange.source import CheckpointSource

STEP_KEY: Final = "production_ml.step"
METRICS_KEY: Final = "production_ml.metrics"
VALUES_KEY: Final = "production_ml.values"
"""Under these keys a consolidated file's `__metadata__` holds what is not tensors, as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    size_bytes: int
    tensors: int
    left_out: tuple[str, ...]
    """Entries of the model that are no tensors, and so have no place in a file of tensors alone."""


def write_consolidated(
    directory: CheckpointDirectory,
    step: int,
    target_path: str | os.PathLike[str],
    *,
    with_optimizer: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the checkpoint of `step` as one safetensors file.

    The model's tensors have their plain names, so `model.load_state_dict(safetensors.torch.load_file(path))` works.
    Each tensor is verified, and held in memory only while it is copied; no process group is needed. The file appears
    under its name when it is complete and durable, and then takes the place of an older one.

    Args:
        directory: Where the checkpoint is.
        step: Which one.
        target_path: The file to write.
        with_optimizer: Write all other tensors too, under their names in the checkpoint (`optimizer.exp_avg.…`,
            `extra.…`), and the values that are not tensors, as JSON in the file's metadata.
        on_bytes: Called with the size of each tensor that was read, to show how far it is.

    Raises:
        DamagedCheckpointError: A tensor is not what was saved; nothing is left behind.
        CheckpointWriteError: The file system does not take the file, or two tensors would have the same name.
        CheckpointError: The checkpoint cannot be read for another reason.
    """
    target = Path(target_path)
    with CheckpointSource(directory, step, on_bytes=on_bytes) as source:
        names = plain_names(source.manifest, with_optimizer=with_optimizer)
        size_bytes = write_tensors(target, source, names, _metadata(source.manifest, with_values=with_optimizer))
    return Exported(
        path=target, size_bytes=size_bytes, tensors=len(names), left_out=tuple(_not_tensors(source.manifest))
    )


def plain_names(manifest: Manifest, *, with_optimizer: bool) -> dict[str, str]:
    """For each name in the file, the tensor's name in the checkpoint.

    A checkpoint in which no model can be told from the rest (DCP wrote it) gives all of its tensors.

    Raises:
        CheckpointWriteError: A parameter has the name of another tensor.
    """
    model = {name: item["$tensor"] for name, item in manifest.values["model"].items() if _is_tensor(item)}
    if model and not with_optimizer:
        return model
    taken = set(model.values())
    rest = [name for name in manifest.tensors if name not in taken]
    for name in model.keys() & set(rest):
        raise CheckpointWriteError(
            f"The model's {name!r} and another tensor of the checkpoint would have the same name in one file.",
            cure="Export the model alone, without --with-optimizer.",
        )
    return {**model, **{name: name for name in rest}}


def write_tensors(target: Path, source: CheckpointSource, names: Mapping[str, str], metadata: Mapping[str, str]) -> int:
    """Write tensors of a checkpoint to one safetensors file, one after the other.

    Args:
        target: The file.
        source: The checkpoint.
        names: For each name in the file, the tensor's name in the checkpoint.
        metadata: The file's `__metadata__`.

    Returns:
        The file's size in bytes.
    """
    entries = {name: source.manifest.tensors[held] for name, held in names.items()}
    # Large elements first: then all are aligned without gaps, as readers that map the file want it.
    ordered = sorted(entries, key=lambda name: -DTYPE_BYTES[entries[name].dtype])
    head, size_bytes = _header({name: entries[name] for name in ordered}, metadata)
    with durable_file(target) as file:
        write_all(file, head)
        for name in ordered:
            write_all(file, as_bytes(source.tensor(names[name])))
    return size_bytes


def _header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, entry in entries.items():
        end = position + math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
        described[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(described).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = struct.pack("<Q", len(encoded)) + encoded
    return head, len(head) + position


def _metadata(manifest: Manifest, *, with_values: bool) -> dict[str, str]:
    metadata = {
        "format": "pt",  # Transformers refuses a file without it
        STEP_KEY: str(manifest.step),
        METRICS_KEY: json.dumps(json_safe(dict(manifest.metrics))),
    }
    return {**metadata, VALUES_KEY: json.dumps(manifest.values)} if with_values else metadata


def _not_tensors(manifest: Manifest) -> Iterator[str]:
    model: Iterable[tuple[str, Any]] = manifest.values["model"].items()
    return (name for name, item in model if not _is_tensor(item))


def _is_tensor(item: Any) -> bool:
    return isinstance(item, dict) and set(item) == {"$tensor"}


def read_safetensors(path: Path, config: ImportConfig) -> SortedState:
    """What is in a safetensors file, sorted; its tensors are mapped from the file, not read.

    A file that `write_consolidated` wrote with everything gives everything back.

    Raises:
        InputFileError: It is no safetensors file.
        CheckpointWriteError: Something in it cannot be saved; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputFileError(path, "is not a file" if path.exists() else "does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as problem:
        raise InputFileError(path, f"is not a safetensors file ({problem})") from problem
    own = _own(metadata)
    found = _everything(own["values"], tensors, config) if "values" in own else None
    # A file that was changed by another tool may have kept our metadata: then it is a file of weights like any other.
    found = found or sort_state(tensors, config)
    found.step, found.metrics = own.get("step"), own.get("metrics", {})
    return found


def _everything(values: Any, tensors: Mapping[str, Any], config: ImportConfig) -> SortedState | None:
    """What the values of a checkpoint say of the tensors; None where the two do not belong together."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return None
    plain = {name: item["$tensor"] for name, item in values["model"].items() if _is_tensor(item)}
    by_name = {plain.get(name, name): tensor for name, tensor in tensors.items()}
    if config.model_only:
        values = {**values, "optimizer": None, "extra": {}}
    wanted = set(tensor_names(values))
    if not wanted <= set(by_name):
        return None
    return SortedState(values, {name: by_name[name] for name in wanted})


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our own part of a file's metadata."""
    own = {}
    for key in (STEP_KEY, METRICS_KEY, VALUES_KEY):
        with contextlib.suppress(KeyError, ValueError):
            own[key.rpartition(".")[2]] = json.loads(metadata[key])
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        own["metrics"] = {name: float(value) for name, value in own["metrics"].items()}
    return own
